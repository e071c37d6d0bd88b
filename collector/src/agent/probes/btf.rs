//! Where a field of a kernel structure lies, from the running kernel's own description (BTF). Finds plain fields only,
//! and rather finds nothing than something doubtful.

use std::path::Path;

/// Where the kernel describes itself.
const PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
/// In a structure with bit fields, a member's offset has its width above these bits.
const OFFSET_BITS: u32 = 24;

/// The byte offset of a field of a structure; none if this kernel has no such field.
pub fn offset(structure: &str, field: &str) -> Option<u64> {
    find(&std::fs::read(Path::new(PATH)).ok()?, structure, field)
}

fn find(btf: &[u8], structure: &str, field: &str) -> Option<u64> {
    let half = |at: usize| Some(u16::from_ne_bytes(btf.get(at..at + 2)?.try_into().ok()?));
    if half(0)? != MAGIC {
        return None;
    }
    let header = word(btf, 4)? as usize;
    let section = |at: usize| {
        let from = header.checked_add(word(btf, at)? as usize)?;
        btf.get(from..from.checked_add(word(btf, at + 4)? as usize)?)
    };
    let (types, strings) = (section(8)?, section(16)?);
    let is = |at: u32, name: &str| {
        let rest = strings.get(at as usize..).unwrap_or_default();
        rest.strip_prefix(name.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    };
    let (mut at, mut found) = (0, None);
    while at < types.len() {
        let (name, info) = (word(types, at)?, word(types, at + 4)?);
        let (kind, members, bits) = ((info >> 24) & 0x1f, (info & 0xffff) as usize, info >> 31);
        at += 12;
        if kind == STRUCT && is(name, structure) {
            for member in (0..members).map(|i| at + 12 * i) {
                if !is(word(types, member)?, field) {
                    continue;
                }
                let place = word(types, member + 8)?;
                let (offset, width) = match bits {
                    0 => (place, 0),
                    _ => (place & ((1 << OFFSET_BITS) - 1), place >> OFFSET_BITS),
                };
                // Two structures of one name, or a bit field: not what was asked for.
                if found.is_some() || width != 0 || offset % 8 != 0 {
                    return None;
                }
                found = Some(u64::from(offset / 8));
            }
        }
        at += trailer(kind, members)?;
    }
    found
}

fn word(of: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(of.get(at..at + 4)?.try_into().ok()?))
}

/// Bytes that follow a type's first 12, by its kind (include/uapi/linux/btf.h).
fn trailer(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        // Pointers, forward declarations, typedefs, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => 0,
        // Integers, variables, declaration tags.
        1 | 14 | 17 => 4,
        // Arrays, structures, unions, sections, wide enumerations.
        3 => 12,
        4 | 5 | 15 | 19 => 12 * members,
        // Enumerations, prototypes.
        6 | 13 => 8 * members,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An integer, and a structure of that name with one field.
    fn btf(structures: &[(&str, &str, u32, bool)]) -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut add = |text: &str| {
            let at = strings.len() as u32;
            strings.extend(text.bytes().chain([0]));
            at
        };
        let mut types: Vec<u32> = vec![add("int"), 1 << 24, 4, 32];
        for (structure, field, place, bits) in structures {
            let info = STRUCT << 24 | 1 | u32::from(*bits) << 31;
            types.extend([add(structure), info, 64, add(field), 1, *place]);
        }
        let length = types.len() as u32 * 4;
        let mut out = MAGIC.to_ne_bytes().to_vec();
        out.extend([1, 0]);
        for word in [24, 0, length, length, strings.len() as u32]
            .iter()
            .chain(&types)
        {
            out.extend(word.to_ne_bytes());
        }
        out.extend(strings);
        out
    }

    #[test]
    fn a_field_is_found_by_its_names_and_nothing_else_is() {
        let one = btf(&[("other", "here", 64, false), ("task", "here", 128, false)]);
        assert_eq!(find(&one, "task", "here"), Some(16));
        assert_eq!(find(&one, "task", "her"), None);
        assert_eq!(find(&one, "tas", "here"), None);
    }

    #[test]
    fn what_is_doubtful_is_not_found() {
        let two = btf(&[("task", "here", 128, false), ("task", "here", 64, false)]);
        assert_eq!(find(&two, "task", "here"), None);
        let plain = btf(&[("task", "here", 128, true)]);
        assert_eq!(find(&plain, "task", "here"), Some(16));
        let bit = btf(&[("task", "here", 1 << 24 | 128, true)]);
        assert_eq!(find(&bit, "task", "here"), None);
        let whole = btf(&[("task", "here", 128, false)]);
        for cut in 0..whole.len() {
            // Never past its end; what is cut off is not there.
            let _ = find(&whole[..cut], "task", "here");
        }
        assert_eq!(find(b"", "task", "here"), None);
    }
}
