//! Where to probe crypto/tls in a Go program: by its symbols or, where those were stripped, by the table with which Go's
//! runtime itself finds names. Probes put into the middle of an instruction would end the process, so code that is not
//! understood to its end, or does not begin as expected, is not probed.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use iced_x86::{Code as Instruction, Decoder, DecoderOptions};

use super::Function;
use super::elf::{Code, Elf, Section, long, word};

/// Their names, and what is probed at their starts.
const FUNCTIONS: [(&[u8], Function); 5] = [
    (b"crypto/tls.(*Conn).Read", Function::GoRead),
    (b"crypto/tls.(*Conn).Write", Function::GoWrite),
    (b"crypto/tls.(*Conn).serverHandshake", Function::GoAccept),
    (b"crypto/tls.(*Conn).clientHandshake", Function::GoFree),
    (b"crypto/tls.(*Conn).Close", Function::GoFree),
];

/// Longer than any of these functions.
const MAX_CODE: u64 = 64 << 10;
/// A C linker's code before Go's, and how Go's functions are aligned.
const FOREIGN_CODE: usize = 64 << 10;
const ALIGNMENT: usize = 16;
/// What [`begins`] looks at, at most.
const LONGEST_BEGINNING: usize = 32;
/// More probes for one function than any needs.
const MAX_PLACES: usize = 64;
const MAX_NAMES: u64 = 32 << 20;
const MAX_FUNCTIONS: u64 = 1 << 20;
/// The table's first word since Go 1.18, and since 1.20.
const MAGICS: [u32; 2] = [0xffff_fff0, 0xffff_fff1];
const TABLES: [&[u8]; 2] = [b".gopclntab", b".data.rel.ro.gopclntab"];

/// What to probe in a program that has Go's crypto/tls; nothing in any other, or if some of it can not be found.
pub fn functions(file: &File, elf: &Elf<'_>) -> Vec<(Function, u64)> {
    let table = TABLES.iter().find_map(|name| elf.section(name).ok()?);
    let Some(table) = table.filter(|_| cfg!(target_arch = "x86_64")) else {
        return Vec::new();
    };
    let names = FUNCTIONS.map(|(name, _)| name);
    let mut found = elf.functions(&names).unwrap_or_default();
    if found.iter().any(Option::is_none) {
        found = by_table(file, elf, table, &names).unwrap_or_default();
    }
    let mut functions = Vec::new();
    for (code, (_, function)) in found.into_iter().zip(FUNCTIONS) {
        let Some(code) = code else {
            // A program that is nobody's client may not have all.
            if function == Function::GoFree {
                continue;
            }
            return Vec::new();
        };
        let Some(places) = places(file, code, function) else {
            return Vec::new();
        };
        functions.extend(places);
    }
    functions
}

/// Where a function is probed; none if it is not understood.
fn places(file: &File, of: Code, function: Function) -> Option<Vec<(Function, u64)>> {
    if of.size > MAX_CODE {
        return None;
    }
    let mut code = vec![0; usize::try_from(of.size).ok()?];
    file.read_exact_at(&mut code, of.offset).ok()?;
    let begins = of.offset + begins(&code)? as u64;
    let mut places = vec![(function, begins)];
    if function == Function::GoRead {
        for instruction in &mut Decoder::with_ip(64, &code, of.offset, DecoderOptions::NONE) {
            match instruction.code() {
                Instruction::INVALID => return None,
                Instruction::Retnq => places.push((Function::GoReadReturn, instruction.ip())),
                _ => {}
            }
        }
        if !(2..=MAX_PLACES).contains(&places.len()) {
            return None;
        }
    }
    Some(places)
}

/// How far it is to what a function does. First it looks if the goroutine's stack is large enough, by the register that
/// has the goroutine since arguments are passed in registers (Go 1.17): `cmp rsp, [r14+16]`, or the same of
/// `lea r12, [rsp-x]` with a large frame, and `jbe`. If it is not, the function begins again, so that is not where to probe.
fn begins(code: &[u8]) -> Option<usize> {
    let rest = match code {
        [0x4c, 0x8d, 0x64, 0x24, _, rest @ ..]
        | [0x4c, 0x8d, 0xa4, 0x24, _, _, _, _, rest @ ..] => {
            rest.strip_prefix(&[0x4d, 0x3b, 0x66, 0x10])
        }
        _ => code.strip_prefix(&[0x49, 0x3b, 0x66, 0x10]),
    };
    let rest = match rest? {
        [0x76, _, rest @ ..] | [0x0f, 0x86, _, _, _, _, rest @ ..] => rest,
        _ => return None,
    };
    Some(code.len() - rest.len())
}

/// The functions by the runtime's table of them, which is there also when symbols are not.
fn by_table<const N: usize>(
    file: &File,
    elf: &Elf<'_>,
    table: Section,
    names: &[&[u8]; N],
) -> Option<[Option<Code>; N]> {
    let text = elf.section(b".text").ok()??;
    let entries = entries(file, table, names)?;
    // The table counts from where Go's code begins: some way into the section where a C linker has put its own before.
    let text = elf.code(text.address, text.size)?.offset;
    let windows: Option<Vec<Vec<u8>>> = entries
        .iter()
        .flatten()
        .map(|entry| {
            let mut window = vec![0; FOREIGN_CODE + LONGEST_BEGINNING];
            file.read_exact_at(&mut window, text.checked_add(entry.start.into())?)
                .ok()?;
            Some(window)
        })
        .collect();
    let windows = windows.filter(|windows| !windows.is_empty())?;
    let mut shifts = (0..FOREIGN_CODE).step_by(ALIGNMENT);
    let shift = shifts.find(|shift| {
        let mut all = windows.iter();
        all.all(|window| {
            window
                .get(*shift..)
                .is_some_and(|code| begins(code).is_some())
        })
    })?;
    Some(entries.map(|entry| {
        let Range { start, end } = entry?;
        Some(Code {
            offset: text.checked_add(shift as u64)?.checked_add(start.into())?,
            size: end.checked_sub(start)?.into(),
        })
    }))
}

/// From where to where functions of these names go in Go's code.
fn entries<const N: usize>(
    file: &File,
    table: Section,
    names: &[&[u8]; N],
) -> Option<[Option<Range<u32>>; N]> {
    let mut header = [0; 72];
    file.read_exact_at(&mut header, table.offset).ok()?;
    // The size of an address is in its last byte.
    if !MAGICS.contains(&word(&header, 0)) || header[7] != 8 {
        return None;
    }
    let count = long(&header, 8);
    let (names_at, names_end) = (long(&header, 32), long(&header, 40));
    let names_size = names_end.checked_sub(names_at)?;
    if names_size > MAX_NAMES || count > MAX_FUNCTIONS {
        return None;
    }
    let mut all_names = vec![0; usize::try_from(names_size).ok()?];
    let names_at = table.offset.checked_add(names_at)?;
    file.read_exact_at(&mut all_names, names_at).ok()?;
    let wanted = names.map(|name| {
        let terminated = [&[0], name, &[0]].concat();
        let mut all = all_names.windows(terminated.len());
        let before = all.position(|here| here == terminated)?;
        u32::try_from(before + 1).ok()
    });
    if wanted.iter().all(Option::is_none) {
        return None;
    }
    let functions_at = table.offset.checked_add(long(&header, 64))?;
    let mut all = vec![0; usize::try_from(count * 8 + 4).ok()?];
    file.read_exact_at(&mut all, functions_at).ok()?;
    let mut found = [const { None }; N];
    for entry in 0..usize::try_from(count).ok()? {
        let at = u64::from(word(&all, entry * 8 + 4)) + 4;
        let mut name = [0; 4];
        file.read_exact_at(&mut name, functions_at.checked_add(at)?)
            .ok()?;
        let name = Some(u32::from_ne_bytes(name));
        if let Some(index) = wanted.iter().position(|at| *at == name)
            && let Some(slot) = found.get_mut(index)
        {
            *slot = Some(word(&all, entry * 8)..word(&all, entry * 8 + 8));
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SMALL: [u8; 6] = [0x49, 0x3b, 0x66, 0x10, 0x76, 0x20];
    const LARGE: [u8; 15] = [
        0x4c, 0x8d, 0xa4, 0x24, 0xd8, 0xfe, 0xff, 0xff, 0x4d, 0x3b, 0x66, 0x10, 0x0f, 0x86, 0,
    ];

    fn file(code: &[u8]) -> (File, Code) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; 16]).unwrap();
        file.write_all(code).unwrap();
        let (offset, size) = (16, code.len() as u64);
        (file, Code { offset, size })
    }

    #[test]
    fn functions_begin_behind_the_look_at_the_stack() {
        assert_eq!(begins(&[&SMALL[..], &[0x90]].concat()), Some(6));
        let large = [&LARGE[..], &[1, 0, 0, 0x90]].concat();
        assert_eq!(begins(&large), Some(18));
        // Arguments on the stack, of which the goroutine is in thread-local storage: Go before 1.17.
        assert_eq!(
            begins(&[0x64, 0x48, 0x8b, 0x0c, 0x25, 0xf8, 0xff, 0xff, 0xff]),
            None
        );
        for length in 0..SMALL.len() {
            assert_eq!(begins(&SMALL[..length]), None, "{length}");
        }
    }

    #[test]
    fn returns_are_instructions_and_no_bytes_within_others() {
        // mov eax, 0xc3c3c3c3; ret; jmp -2; ret
        let body = [0xb8, 0xc3, 0xc3, 0xc3, 0xc3, 0xc3, 0xeb, 0xfe, 0xc3];
        let (file, code) = file(&[&SMALL[..], &body].concat());
        let found = places(&file, code, Function::GoRead).unwrap();
        let expected = [
            (Function::GoRead, 22),
            (Function::GoReadReturn, 27),
            (Function::GoReadReturn, 30),
        ];
        assert_eq!(found, expected);
        let found = places(&file, code, Function::GoWrite);
        assert_eq!(found, Some(vec![(Function::GoWrite, 22)]));
    }

    #[test]
    fn code_that_is_not_understood_is_not_probed() {
        // 0x06 is no instruction of 64-bit code; without a return nothing is read; cut off in an instruction.
        for body in [&[0x06, 0xc3][..], &[0x90], &[0xc3, 0xb8, 0xc3]] {
            let (file, code) = file(&[&SMALL[..], body].concat());
            assert_eq!(places(&file, code, Function::GoRead), None, "{body:?}");
        }
    }
}
