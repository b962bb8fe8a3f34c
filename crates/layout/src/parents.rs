//! The circles between a child and its parent that are as they should be.

/// One line of `parents.txt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The crate's folder: `core`.
    pub of: String,
    /// The file that imports from its parent.
    pub child: String,
    /// Its parent.
    pub parent: String,
    /// Why they are not taken apart.
    pub reason: String,
}

/// Reads what `parents.txt` says; the line that is not understood otherwise.
///
/// # Errors
///
/// A line without a crate, an arrow and a reason.
pub fn parents(text: &str) -> Result<Vec<Parent>, String> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let read = || {
                let (of, rest) = line.split_once(": ")?;
                let (child, rest) = rest.split_once(" -> ")?;
                let (parent, reason) = rest.split_once(": ")?;
                Some(Parent {
                    of: of.to_owned(),
                    child: child.to_owned(),
                    parent: parent.to_owned(),
                    reason: reason.trim().to_owned(),
                })
            };
            read().ok_or_else(|| line.to_owned())
        })
        .collect()
}
