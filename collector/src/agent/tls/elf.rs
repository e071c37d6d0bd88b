//! Where functions lie in an ELF file, by its symbols. The files are the pods' own: nothing in them is believed, what
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
const MAX_SYMBOLS: u64 = 128 << 20;
const SYMBOL: usize = 24;
const PIECE: usize = SYMBOL * 4096;

/// A part of the file that is mapped.
struct Segment {
    address: u64,
    offset: u64,
    size: u64,
}

/// The file offsets of the functions of these names, in their order; an error if the file is no ELF file of this
/// machine's kind, or can not be read.
pub fn functions<const N: usize>(file: &File, names: &[&[u8]; N]) -> io::Result<[Option<u64>; N]> {
    let mut found = [None; N];
    let header: [u8; 64] = read(file, 0)?;
    let kind = if cfg!(target_endian = "little") { 1 } else { 2 };
    if header[..4] != *b"\x7fELF" || header[4] != 2 || header[5] != kind {
        return Err(malformed("not a 64-bit ELF file"));
    }
    let segments = segments(file, &header)?;
    let (at, size, count) = (long(&header, 40), half(&header, 58), half(&header, 60));
    if size < 64 || count > MAX_HEADERS {
        return Err(malformed("its section headers are odd"));
    }
    let section = |index: u64| -> io::Result<[u8; 64]> { read(file, place(at, index, size)?) };
    for index in 0..count {
        let header = section(index)?;
        if ![SYMBOLS, DYNAMIC_SYMBOLS].contains(&word(&header, 4)) {
            continue;
        }
        let linked = u64::from(word(&header, 40));
        if linked >= count {
            return Err(malformed("its symbols have no names"));
        }
        let text = section(linked)?;
        let (names_at, names_size) = (long(&text, 24), long(&text, 32));
        let (symbols_at, symbols_size) = (long(&header, 24), long(&header, 32));
        if names_size > MAX_NAMES || symbols_size > MAX_SYMBOLS {
            return Err(malformed("its symbol table is too large"));
        }
        let mut all_names = vec![0; usize::try_from(names_size).unwrap_or_default()];
        file.read_exact_at(&mut all_names, names_at)?;
        let symbols = Symbols {
            file,
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
                *slot = offset_of(&segments, address).or(*slot);
            }
        })?;
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    Ok(found)
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

/// Where in the file code lies that is at this address in memory.
fn offset_of(segments: &[Segment], address: u64) -> Option<u64> {
    segments.iter().find_map(|segment| {
        let ahead = address.checked_sub(segment.address)?;
        (ahead < segment.size).then(|| segment.offset.checked_add(ahead))?
    })
}

/// The name that begins there, without the version that a linker may have put behind it.
fn name_at(names: &[u8], at: usize) -> &[u8] {
    let rest = names.get(at..).unwrap_or_default();
    let end = rest.iter().position(|byte| matches!(byte, 0 | b'@'));
    rest.get(..end.unwrap_or_default()).unwrap_or_default()
}

fn place(at: u64, index: u64, size: u64) -> io::Result<u64> {
    at.checked_add(index * size)
        .ok_or_else(|| malformed("its headers have no end"))
}

fn read<const N: usize>(file: &File, at: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn bytes<const N: usize>(of: &[u8], at: usize) -> [u8; N] {
    let found = of.get(at..).and_then(<[u8]>::first_chunk);
    found.copied().unwrap_or([0; N])
}

fn long(of: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes(of, at))
}

fn word(of: &[u8], at: usize) -> u32 {
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
        let found = functions(&file, &names).unwrap();
        assert_eq!(found[1], None);
        let mut in_file = [0; 8];
        file.read_exact_at(&mut in_file, found[0].unwrap()).unwrap();
        // SAFETY: code of at least that length, which is readable.
        let in_memory = unsafe { *(ebpf_scaler_elf_test as *const [u8; 8]) };
        assert_eq!(in_file, in_memory);
    }

    #[test]
    fn what_is_no_elf_file_or_a_part_of_one_is_refused() {
        let whole = std::fs::read("/proc/self/exe").unwrap();
        let names: [&[u8]; 1] = [b"ebpf_scaler_elf_test"];
        for length in [0, 3, 63, 64, 100, 4096, whole.len() / 2] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&whole[..length]).unwrap();
            assert!(functions(&file, &names).is_err(), "{length}");
        }
    }

    #[test]
    fn headers_full_of_nonsense_lead_nowhere() {
        let whole = std::fs::read("/proc/self/exe").unwrap();
        let names: [&[u8]; 1] = [b"ebpf_scaler_elf_test"];
        // Each place of the header that says how much there is, or where.
        for (at, length) in [(32, 8), (40, 8), (54, 2), (56, 2), (58, 2), (60, 2)] {
            let mut header = whole[..64].to_vec();
            header[at..at + length].fill(0xff);
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&header).unwrap();
            assert!(functions(&file, &names).is_err(), "{at}");
        }
    }
}
