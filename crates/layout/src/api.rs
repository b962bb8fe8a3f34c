//! The public API of the library as text: what `cargo doc` says without its prose.
//!
//! rustdoc's pages are read, and not its JSON, which stable toolchains do not write. Each item has its declaration, then the
//! methods of its own, then the names of the traits that it implements; what the compiler adds for every type is left out.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Why there is no text.
#[derive(Debug)]
pub enum ApiError {
    /// A page that cannot be read.
    Page(PathBuf, std::io::Error),
    /// The pages are there, and look otherwise than rustdoc's did.
    Unknown(PathBuf),
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Page(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Unknown(path) => write!(
                f,
                "{}: no declaration is found; rustdoc may write its pages in another way now",
                path.display()
            ),
        }
    }
}

impl std::error::Error for ApiError {}

/// The API of the crate whose pages are in `pages`, for example `target/doc/keydispatch`.
///
/// # Errors
///
/// A page that is not there, or one without a declaration.
pub fn api(pages: &Path) -> Result<String, ApiError> {
    let index = read(&pages.join("all.html"))?;
    let mut items: Vec<&str> = between(&index, "href=\"", "\"")
        .filter(|link| link.ends_with(".html") && !link.starts_with('.') && !link.contains("://"))
        .filter(|link| {
            let file = link.rsplit('/').next().unwrap_or(link);
            file.split('.').count() == 3
        })
        .collect();
    items.sort_unstable();
    items.dedup();
    if items.is_empty() {
        return Err(ApiError::Unknown(pages.join("all.html")));
    }
    let mut text = String::new();
    for item in items {
        let path = pages.join(item);
        let page = read(&path)?;
        let name = item.trim_end_matches(".html").replace('.', " ");
        let _ = writeln!(text, "## {name}\n");
        let declaration = between(&page, "<pre class=\"rust item-decl\">", "</pre>").next();
        let declaration = declaration.ok_or(ApiError::Unknown(path))?;
        for line in plain(declaration)
            .lines()
            .filter(|line| !line.trim().is_empty())
        {
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text += &implementations(&page);
        text.push('\n');
    }
    Ok(text)
}

/// What it implements: its own methods, and the traits by name.
fn implementations(page: &str) -> String {
    let until = |from: usize| {
        page[from..]
            .find("<h2 id=\"")
            .map_or(page.len(), |next| from + next)
    };
    let section = |id: &str| {
        let mark = format!("<h2 id=\"{id}\"");
        page.find(&mark)
            .map(|at| &page[at..until(at + mark.len())])
            .unwrap_or_default()
    };
    let mut text = String::new();
    let mut own = section("implementations");
    while let Some(at) = own.find("class=\"code-header\">") {
        let is_method = own[..at].ends_with("<h4 ");
        let rest = &own[at + "class=\"code-header\">".len()..];
        let end = rest.find(if is_method { "</h4>" } else { "</h3>" });
        let end = end.unwrap_or(rest.len());
        let indent = if is_method { "    " } else { "" };
        let _ = writeln!(text, "{indent}{}", one_line(&rest[..end]));
        own = &rest[end..];
    }
    let mut traits: Vec<String> = between(
        section("trait-implementations"),
        "<h3 class=\"code-header\">",
        "</h3>",
    )
    .map(one_line)
    .collect();
    traits.sort_unstable();
    traits.dedup();
    for line in traits {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn read(path: &Path) -> Result<String, ApiError> {
    std::fs::read_to_string(path).map_err(|error| ApiError::Page(path.to_owned(), error))
}

/// Everything between a beginning and the next end.
fn between<'a>(text: &'a str, begin: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(begin)
        .skip(1)
        .map(move |rest| rest.split(end).next().unwrap_or(rest))
}

fn one_line(html: &str) -> String {
    let text = plain(html);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace("( ", "(").replace(", )", ")")
}

/// Without tags.
fn plain(html: &str) -> String {
    let html = html.replace("</div>", "\n");
    let mut text = String::with_capacity(html.len());
    let mut rest = html.as_str();
    while let Some(at) = rest.find('<') {
        text += &rest[..at];
        rest = rest[at..].find('>').map_or("", |end| &rest[at + end + 1..]);
    }
    text += rest;
    let signs = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&nbsp;", " "),
        ("&amp;", "&"),
    ];
    signs
        .iter()
        .fold(text, |text, (sign, letter)| text.replace(sign, letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_becomes_its_declaration_its_methods_and_its_traits() {
        let page = "<pre class=\"rust item-decl\"><code>pub struct <a>Handle</a>&lt;P&gt; { }</code></pre>\
            <h2 id=\"implementations\">I</h2><h3 class=\"code-header\">impl&lt;P&gt; Handle&lt;P&gt;</h3>\
            <h4 class=\"code-header\">pub fn <a>find</a>(\n    &amp;self,\n    key: Key,\n) -&gt; Found</h4>\
            <h2 id=\"trait-implementations\">T</h2><h3 class=\"code-header\">impl Clone for Handle</h3>\
            <h4 class=\"code-header\">fn clone(&amp;self)</h4>\
            <h2 id=\"synthetic-implementations\">A</h2><h3 class=\"code-header\">impl Send for Handle</h3>";
        let folder = std::env::temp_dir().join(format!("keydispatch-api-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let index = "<a href=\"../index.html\"></a><a href=\"index.html\"></a><a href=\"struct.Handle.html\"></a>";
        std::fs::write(folder.join("all.html"), index).expect("a file can be written");
        std::fs::write(folder.join("struct.Handle.html"), page).expect("a file can be written");
        let text = api(&folder);
        std::fs::remove_dir_all(&folder).expect("the folder can be removed");
        assert_eq!(
            text.expect("it is read"),
            "## struct Handle\n\npub struct Handle<P> { }\nimpl<P> Handle<P>\n    pub fn find(&self, key: Key) -> Found\n\
             impl Clone for Handle\n\n"
        );
    }
}
