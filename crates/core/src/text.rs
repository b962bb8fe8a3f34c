//! Characters that say one thing and show another, and how text from outside is printed.

use std::fmt::{self, Write};
use std::ops::RangeInclusive;

/// The characters that names must not hold, and that are escaped where a text is printed that came from outside.
///
/// Rule: what is printed is what is there. One of these breaks a line in two, moves the cursor, turns the direction of what
/// follows, or shows nothing, so that a name looks like another or a log line says what nobody logged.
const HIDDEN: [RangeInclusive<char>; 12] = [
    // Control characters, of ASCII and of Latin-1.
    '\u{0}'..='\u{1f}',
    '\u{7f}'..='\u{9f}',
    // The soft hyphen.
    '\u{ad}'..='\u{ad}',
    // The Arabic letter mark, which turns the direction.
    '\u{61c}'..='\u{61c}',
    // The Mongolian vowel separator.
    '\u{180e}'..='\u{180e}',
    // Zero-width space and joiners, marks of direction.
    '\u{200b}'..='\u{200f}',
    // Separators of lines and paragraphs; embeddings and overrides of direction.
    '\u{2028}'..='\u{202e}',
    // The word joiner, invisible operators, isolates of direction, and formatting that is deprecated.
    '\u{2060}'..='\u{206f}',
    // The zero-width no-break space, which begins files as the byte order mark.
    '\u{feff}'..='\u{feff}',
    // Annotations between lines.
    '\u{fff9}'..='\u{fffb}',
    // Invisible musical formatting.
    '\u{1d173}'..='\u{1d17a}',
    // Tags, which show nothing.
    '\u{e0000}'..='\u{e007f}',
];

/// True for a character of the table above.
pub(crate) fn is_hidden(c: char) -> bool {
    HIDDEN.iter().any(|range| range.contains(&c))
}

/// A text that came from outside, to be printed: in a log, or in an error.
///
/// Every character that would garble the line or hide what it says is printed as its escape (`\n`, `\u{202e}`); all others
/// are printed as they are.
///
/// ```
/// use keydispatch_core::Escaped;
/// assert_eq!(Escaped("10.0.0.1:7400").to_string(), "10.0.0.1:7400");
/// assert_eq!(Escaped("a\nWARN forged").to_string(), r"a\nWARN forged");
/// ```
#[derive(Clone, Copy)]
pub struct Escaped<T>(pub T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

// Where a log takes a field by `Debug`, it is escaped as well.
impl<T: fmt::Display> fmt::Debug for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Writes through what shows, and escapes the rest.
struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, hidden)) = rest.char_indices().find(|(_, c)| is_hidden(*c)) {
            self.0.write_str(&rest[..at])?;
            for c in hidden.escape_debug() {
                self.0.write_char(c)?;
            }
            rest = &rest[at + hidden.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Characters that were used to deceive, from every kind.
    const NAMED: &str = "\0\t\n\r\u{1b}\u{7f}\u{85}\u{9b}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\
                         \u{2069}\u{200e}\u{200f}\u{61c}\u{200b}\u{200c}\u{200d}\u{2060}\u{feff}\u{2028}\u{2029}";

    #[test]
    fn every_character_that_hides_is_in_the_table_and_what_shows_is_not() {
        for c in NAMED.chars() {
            assert!(is_hidden(c), "{c:?}");
        }
        for c in "aZ09 -_./:@'\"\\äßéñ名前имя日本שלוםمرحبا😀–—…".chars()
        {
            assert!(!is_hidden(c), "{c:?}");
        }
        assert!(('\0'..=char::MAX).filter(|c| c.is_control()).all(is_hidden));
    }

    #[test]
    fn what_is_printed_holds_no_character_of_the_table_and_says_which_it_was() {
        for c in ('\0'..=char::MAX).filter(|c| is_hidden(*c)) {
            let shown = Escaped(format!("a{c}b")).to_string();
            assert!(!shown.chars().any(is_hidden), "{c:?}");
            assert!(shown.starts_with("a\\") && shown.ends_with('b'), "{shown}");
        }
    }

    #[test]
    fn what_shows_is_printed_as_it_is() {
        for text in ["", "10.0.0.1:7400", "[::1]:1", "it's \"quoted\" \\ 名前"] {
            assert_eq!(Escaped(text).to_string(), text);
            assert_eq!(format!("{:?}", Escaped(text)), text);
        }
    }
}
