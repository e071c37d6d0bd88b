//! Where functions and sections lie in an ELF file, by its headers and symbols. The files are the pods' own: nothing in them is believed, what
//! is read is bounded, and what is doubtful is not found.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const LOAD: u32 = 1;
const SYMBOLS: u32 = 2;
const DYNAMIC_SYMBOLS: u32 = 11;
const FUNCTION: u8 = 2;
const EXECUTABLE: u32 = 1;
/// Sections and segments that a real file has at most; with more it is none.
const MAX_HEADERS: u64 = 4096;
/// Names of symbols are held in memory while a file is read, symbols a piece at a time.
const MAX_NAMES: u64 = 32 << 20;
const MAX_SECTION_NAMES: u64 = 1 << 20;
const MAX_SYMBOLS: u64 = 128 << 20;
const SYMBOL: usize = 24;
const PIECE: usize = SYMBOL * 4096;

/// A part of the file that is mapped.
struct Segment {
    address: u64,
    offset: u64,
    size: u64,
}

/// A function's code in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    pub offset: u64,
    pub size: u64,
}

/// A section of the file, which has this address in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    pub address: u64,
    pub offset: u64,
    pub size: u64,
}

/// The headers of a file.
pub struct Elf<'a> {
    file: &'a File,
    segments: Vec<Segment>,
    /// Where section headers lie, the size of one, and how many there are.
    sections: (u64, u64, u64),
    /// The section that has the names of sections.
    names: u64,
}

impl<'a> Elf<'a> {
    /// An error if the file is no ELF file of this machine's kind, or can not be read.
    pub fn read(file: &'a File) -> io::Result<Elf<'a>> {
        let header: [u8; 64] = read(file, 0)?;
        let kind = if cfg!(target_endian = "little") { 1 } else { 2 };
        if header[..4] != *b"\x7fELF" || header[4] != 2 || header[5] != kind {
            return Err(malformed("not a 64-bit ELF file"));
        }
        let segments = segments(file, &header)?;
        let sections = (long(&header, 40), half(&header, 58), half(&header, 60));
        if sections.1 < 64 || sections.2 > MAX_HEADERS {
            return Err(malformed("its section headers are odd"));
        }
        Ok(Elf {
            file,
            segments,
            sections,
            names: half(&header, 62),
        })
    }

    fn header(&self, index: u64) -> io::Result<[u8; 64]> {
        let (at, size, count) = self.sections;
        if index >= count {
            return Err(malformed("it names a section that it does not have"));
        }
        read(self.file, place(at, index, size)?)
    }

    /// The functions of these names, in their order.
    pub fn functions<const N: usize>(&self, names: &[&[u8]; N]) -> io::Result<[Option<Code>; N]> {
        let mut found = [None; N];
        for index in 0..self.sections.2 {
            let header = self.header(index)?;
            if ![SYMBOLS, DYNAMIC_SYMBOLS].contains(&word(&header, 4)) {
                continue;
            }
            let text = self.header(u64::from(word(&header, 40)))?;
            let (names_at, names_size) = (long(&text, 24), long(&text, 32));
            let (symbols_at, symbols_size) = (long(&header, 24), long(&header, 32));
            if names_size > MAX_NAMES || symbols_size > MAX_SYMBOLS {
                return Err(malformed("its symbol table is too large"));
            }
            let mut all_names = vec![0; usize::try_from(names_size).unwrap_or_default()];
            self.file.read_exact_at(&mut all_names, names_at)?;
            let symbols = Symbols {
                file: self.file,
                at: symbols_at,
                size: symbols_size,
            };
            symbols.each(|symbol| {
                let (address, section) = (long(symbol, 8), half(symbol, 6));
                if symbol[4] & 0xf != FUNCTION || section == 0 || address == 0 {
                    return;
                }
                let name = name_at(&all_names, word(symbol, 0) as usize);
                if let Some(index) = names.iter().position(|wanted| *wanted == name)
                    && let Some(slot) = found.get_mut(index)
                {
                    *slot = self.code(address, long(symbol, 16)).or(*slot);
                }
            })?;
            if found.iter().all(Option::is_some) {
                break;
            }
        }
        Ok(found)
    }

    /// Code that is at this address in memory, and how long it is.
    pub fn code(&self, address: u64, size: u64) -> Option<Code> {
        self.segments.iter().find_map(|segment| {
            let ahead = address.checked_sub(segment.address)?;
            let offset = segment.offset.checked_add(ahead)?;
            (ahead < segment.size).then_some(Code { offset, size })
        })
    }

    /// The section of that name.
    pub fn section(&self, name: &[u8]) -> io::Result<Option<Section>> {
        let names = self.header(self.names)?;
        let (names_at, names_size) = (long(&names, 24), long(&names, 32).min(MAX_SECTION_NAMES));
        let mut all_names = vec![0; usize::try_from(names_size).unwrap_or_default()];
        self.file.read_exact_at(&mut all_names, names_at)?;
        for index in 0..self.sections.2 {
            let header = self.header(index)?;
            if name_at(&all_names, word(&header, 0) as usize) == name {
                return Ok(Some(Section {
                    address: long(&header, 16),
                    offset: long(&header, 24),
                    size: long(&header, 32),
                }));
            }
        }
        Ok(None)
    }
}

struct Symbols<'a> {
    file: &'a File,
    at: u64,
    size: u64,
}

impl Symbols<'_> {
    fn each(&self, mut look: impl FnMut(&[u8; SYMBOL])) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        let mut done = 0;
        while self.size - done >= SYMBOL as u64 {
            let left = usize::try_from(self.size - done).unwrap_or(PIECE);
            let length = left.min(PIECE) / SYMBOL * SYMBOL;
            let piece = piece.get_mut(..length).unwrap_or_default();
            let at = self.at.checked_add(done);
            self.file
                .read_exact_at(piece, at.ok_or_else(|| malformed("it has no end"))?)?;
            piece.as_chunks().0.iter().for_each(&mut look);
            done += length as u64;
        }
        Ok(())
    }
}

fn segments(file: &File, header: &[u8; 64]) -> io::Result<Vec<Segment>> {
    let (at, size, count) = (long(header, 32), half(header, 54), half(header, 56));
    if size < 56 || count > MAX_HEADERS {
        return Err(malformed("its program headers are odd"));
    }
    let mut segments = Vec::new();
    for index in 0..count {
        let header: [u8; 56] = read(file, place(at, index, size)?)?;
        if word(&header, 0) == LOAD && word(&header, 4) & EXECUTABLE != 0 {
            segments.push(Segment {
                address: long(&header, 16),
                offset: long(&header, 8),
                size: long(&header, 32),
            });
        }
    }
    Ok(segments)
}

/// The name that begins there, without the version that a linker may have put behind it.
pub fn name_at(names: &[u8], at: usize) -> &[u8] {
    let rest = names.get(at..).unwrap_or_default();
    let end = rest.iter().position(|byte| matches!(byte, 0 | b'@'));
    rest.get(..end.unwrap_or_default()).unwrap_or_default()
}

fn place(at: u64, index: u64, size: u64) -> io::Result<u64> {
    at.checked_add(index * size)
        .ok_or_else(|| malformed("its headers have no end"))
}

pub fn read<const N: usize>(file: &File, at: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

pub fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn bytes<const N: usize>(of: &[u8], at: usize) -> [u8; N] {
    let found = of.get(at..).and_then(<[u8]>::first_chunk);
    found.copied().unwrap_or([0; N])
}

pub fn long(of: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes(of, at))
}

pub fn word(of: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes(of, at))
}

fn half(of: &[u8], at: usize) -> u64 {
    u64::from(u16::from_ne_bytes(bytes(of, at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Something that this program surely has, under a name that the compiler leaves alone.
    #[unsafe(no_mangle)]
    extern "C" fn ebpf_scaler_elf_test() -> u64 {
        std::hint::black_box(0x0123_4567_89ab_cdef)
    }

    #[test]
    fn a_function_is_found_where_its_code_is() {
        std::hint::black_box(ebpf_scaler_elf_test());
        let file = File::open("/proc/self/exe").unwrap();
        let names: [&[u8]; 2] = [b"ebpf_scaler_elf_test", b"ebpf_scaler_elf_tes"];
        let found = Elf::read(&file).unwrap().functions(&names).unwrap();
        assert_eq!(found[1], None);
        let mut in_file = [0; 8];
        file.read_exact_at(&mut in_file, found[0].unwrap().offset)
            .unwrap();
        // SAFETY: code of at least that length, which is readable.
        let in_memory = unsafe { *(ebpf_scaler_elf_test as *const [u8; 8]) };
        assert_eq!(in_file, in_memory);
    }

    fn looked_for(file: &File) -> io::Result<[Option<Code>; 1]> {
        let names: [&[u8]; 1] = [b"ebpf_scaler_elf_test"];
        Elf::read(file)?.functions(&names)
    }

    #[test]
    fn what_is_no_elf_file_or_a_part_of_one_is_refused() {
        let whole = std::fs::read("/proc/self/exe").unwrap();
        for length in [0, 3, 63, 64, 100, 4096, whole.len() / 2] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&whole[..length]).unwrap();
            assert!(looked_for(&file).is_err(), "{length}");
        }
    }

    #[test]
    fn headers_full_of_nonsense_lead_nowhere() {
        let whole = std::fs::read("/proc/self/exe").unwrap();
        // Each place of the header that says how much there is, or where.
        for (at, length) in [(32, 8), (40, 8), (54, 2), (56, 2), (58, 2), (60, 2)] {
            let mut header = whole[..64].to_vec();
            header[at..at + length].fill(0xff);
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&header).unwrap();
            assert!(looked_for(&file).is_err(), "{at}");
        }
    }
}
