//! Finds the line of a field in YAML text.
//!
//! The YAML parser gives no positions of values, so this follows indentation in block style. It is a help for people:
//! inside flow style (`{a: 1}`) or after anchors it gives the nearest line above.

use super::schema::Segment;

/// Offset of the line, from 0, at which the field of this path (or its nearest known parent) stands.
pub(super) fn line(text: &str, path: &[Segment]) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let meaningful = |index: &usize| {
        lines.get(*index).is_some_and(|line| {
            let line = line.trim_start();
            !line.is_empty() && !line.starts_with('#')
        })
    };
    let Some(mut at) = (0..lines.len()).find(meaningful) else { return 0 };
    let first = at;
    // Columns at which the keys or dashes of the present block stand; `None` until its first line is seen.
    let mut column = indent(lines[at]);
    let mut start = at;
    for (depth, segment) in path.iter().enumerate() {
        let found = match segment {
            Segment::Key(key) => (start..lines.len()).filter(meaningful).find_map(|index| {
                let (place, content) = key_position(lines[index], index == start, column)?;
                (place == column && key_of(content) == Some(key.as_str())).then_some(index)
            }),
            Segment::Index(wanted) => (start..lines.len())
                .filter(meaningful)
                .take_while(|index| indent(lines[*index]) >= column)
                .filter(|index| indent(lines[*index]) == column && lines[*index].trim_start().starts_with('-'))
                .nth(*wanted),
        };
        let Some(found) = found.filter(|found| in_block(&lines, start, *found, column)) else {
            return if depth == 0 { first } else { at };
        };
        at = found;
        // Where the child block begins: after the dash on the same line, or at the next meaningful line.
        match segment {
            Segment::Index(_) => {
                let rest = lines[found].trim_start().trim_start_matches('-');
                if rest.trim().is_empty() {
                    let Some(next) = (found + 1..lines.len()).find(meaningful) else { return at };
                    (start, column) = (next, indent(lines[next]));
                } else {
                    let spaces = rest.len() - rest.trim_start().len();
                    (start, column) = (found, indent(lines[found]) + 1 + spaces);
                }
            }
            Segment::Key(_) => {
                let Some(next) = (found + 1..lines.len()).find(meaningful) else { return at };
                let dash = lines[next].trim_start().starts_with('-');
                // A list may stand at its key's own column; anything else there is a sibling.
                if indent(lines[next]) < column || (indent(lines[next]) == column && !dash) {
                    return at;
                }
                (start, column) = (next, indent(lines[next]));
            }
        }
    }
    at
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// Column and text of the key on a line; on a list item's first line the key stands behind the dash.
fn key_position(line: &str, first: bool, column: usize) -> Option<(usize, &str)> {
    let content = line.trim_start();
    if first && content.starts_with('-') && indent(line) < column {
        return line.get(column..).map(|rest| (column, rest));
    }
    Some((indent(line), content))
}

fn key_of(content: &str) -> Option<&str> {
    let quoted = content.strip_prefix('"').or_else(|| content.strip_prefix('\''));
    match quoted {
        Some(rest) => rest.split(['"', '\'']).next(),
        None => content.split_once(':').map(|(key, _)| key.trim_end()),
    }
}

/// Whether no line between leaves the block, which would make the hit belong to another parent.
fn in_block(lines: &[&str], start: usize, found: usize, column: usize) -> bool {
    (start + 1..=found).all(|index| {
        let line = lines[index];
        line.trim().is_empty() || line.trim_start().starts_with('#') || indent(line) >= column
    })
}

#[cfg(test)]
mod tests {
    use super::super::schema::parse_path;
    use super::*;

    #[test]
    fn follows_keys_and_items_and_stops_at_the_nearest_parent() {
        let text = "# c\na:\n  b:\n  - name: x\n    c: 1\n  -\n    name: y\n    c: 2\n  d: {e: 1}\nf:\n- g: 1\n  h:\n    - i\n    - j\nd: 2\n";
        for (path, line_number) in [
            ("a", 2),
            ("a.b", 3),
            ("a.b[0].name", 4),
            ("a.b[0].c", 5),
            ("a.b[1].c", 8),
            ("a.d.e", 9),
            ("a.b[0].missing", 4),
            ("f[0].h[1]", 14),
            ("d", 15),
            ("missing", 2),
            ("a.f", 2),
        ] {
            assert_eq!(line(text, &parse_path(path)) + 1, line_number, "{path}");
        }
        assert_eq!(line("", &parse_path("a")), 0);
    }
}
