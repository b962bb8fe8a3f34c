//! The paths that a file's tokens hold.

use std::collections::BTreeMap;

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// What one file says: the modules that it declares, what it imports by which name, and every path in it.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// Child modules with files of their own, without those of tests.
    pub(crate) modules: Vec<String>,
    /// Name in this file → path as it is written.
    pub(crate) imports: BTreeMap<String, Vec<String>>,
    /// Structs, enums and traits.
    pub(crate) types: Vec<String>,
    /// Every path with two segments or more, as it is written.
    pub(crate) paths: Vec<Vec<String>>,
}

impl Said {
    pub(crate) fn read(tokens: TokenStream) -> Self {
        let mut said = Self::default();
        said.items(tokens, 0);
        said
    }

    /// Reads tokens that stand `depth` inline modules deep.
    fn items(&mut self, tokens: TokenStream, depth: usize) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        let mut in_tests = false;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Punct(punct) if punct.as_char() == '#' && at + 1 < tokens.len() => {
                    // An inner attribute, `#![…]`, has a token more.
                    let inner =
                        matches!(&tokens[at + 1], TokenTree::Punct(next) if next.as_char() == '!');
                    let attribute = at + 1 + usize::from(inner);
                    if let Some(TokenTree::Group(group)) = tokens.get(attribute) {
                        in_tests |= !inner && is_of_tests(&group.stream());
                    }
                    at = attribute + 1;
                }
                _ if in_tests => {
                    at = after_item(&tokens, at);
                    in_tests = false;
                }
                TokenTree::Ident(word) if word == "struct" || word == "enum" || word == "trait" => {
                    if let Some(TokenTree::Ident(name)) = tokens.get(at + 1) {
                        self.types.push(name.to_string());
                    }
                    at += 2;
                }
                TokenTree::Ident(word) if word == "mod" => at = self.module(&tokens, at, depth),
                TokenTree::Ident(word) if word == "use" => {
                    let end = (at..tokens.len())
                        .find(|&end| is_punct(&tokens[end], ';'))
                        .unwrap_or(tokens.len());
                    let mut base = Vec::new();
                    self.tree(&tokens[at + 1..end], &mut base, depth);
                    at = end + 1;
                }
                TokenTree::Ident(_) => {
                    let (path, next) = path_at(&tokens, at);
                    if path.len() > 1 {
                        self.say(path, depth);
                    }
                    at = next;
                }
                TokenTree::Group(group) => {
                    self.items(group.stream(), depth);
                    at += 1;
                }
                _ => at += 1,
            }
        }
    }

    /// `mod name;` declares a file, `mod name { … }` is read as part of this one.
    fn module(&mut self, tokens: &[TokenTree], at: usize, depth: usize) -> usize {
        match (tokens.get(at + 1), tokens.get(at + 2)) {
            (Some(TokenTree::Ident(name)), Some(next)) if is_punct(next, ';') => {
                self.modules.push(name.to_string());
                at + 3
            }
            (Some(TokenTree::Ident(_)), Some(TokenTree::Group(body)))
                if body.delimiter() == Delimiter::Brace =>
            {
                self.items(body.stream(), depth + 1);
                at + 3
            }
            _ => at + 1,
        }
    }

    /// The tree of a `use`: `a::b`, `a::{b, c as d}`, `a::*`.
    fn tree(&mut self, tokens: &[TokenTree], base: &mut Vec<String>, depth: usize) {
        let before = base.len();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Ident(word) if word == "as" => {
                    if let Some(TokenTree::Ident(name)) = tokens.get(at + 1) {
                        self.import(name.to_string(), base.clone(), depth);
                    }
                    base.truncate(before);
                    return;
                }
                TokenTree::Ident(word) => base.push(word.to_string()),
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    for part in inner.split(|token| is_punct(token, ',')) {
                        if !part.is_empty() {
                            self.tree(part, base, depth);
                        }
                    }
                    base.truncate(before);
                    return;
                }
                TokenTree::Punct(punct) if punct.as_char() == '*' => {
                    self.say(base.clone(), depth);
                    base.truncate(before);
                    return;
                }
                _ => {}
            }
            at += 1;
        }
        if base.len() > 1 && base.last().is_some_and(|last| last == "self") {
            base.pop();
        }
        let name = base.last().cloned().unwrap_or_default();
        self.import(name, base.clone(), depth);
        base.truncate(before);
    }

    fn import(&mut self, name: String, path: Vec<String>, depth: usize) {
        if let Some(path) = out_of(path, depth) {
            if depth == 0 {
                self.imports.insert(name, path.clone());
            }
            self.paths.push(path);
        }
    }

    fn say(&mut self, path: Vec<String>, depth: usize) {
        if let Some(path) = out_of(path, depth) {
            self.paths.push(path);
        }
    }
}

/// A path as the file's own module would write it; none where it stays within inline modules.
fn out_of(mut path: Vec<String>, depth: usize) -> Option<Vec<String>> {
    let ups = path.iter().take_while(|part| *part == "super").count();
    if depth == 0 || path.first().is_some_and(|first| first == "crate") {
        return Some(path);
    }
    if ups < depth {
        return None;
    }
    path.drain(..depth);
    if ups == depth {
        path.insert(0, "self".to_owned());
    }
    Some(path)
}

/// The path that begins at `at`, and what comes after it. Generic arguments are no part of it.
fn path_at(tokens: &[TokenTree], at: usize) -> (Vec<String>, usize) {
    let mut path = Vec::new();
    let mut at = at;
    while let Some(TokenTree::Ident(word)) = tokens.get(at) {
        path.push(word.to_string());
        at += 1;
        let more = matches!(tokens.get(at), Some(TokenTree::Punct(first))
            if first.as_char() == ':' && first.spacing() == Spacing::Joint)
            && matches!(tokens.get(at + 2), Some(TokenTree::Ident(_)));
        if !more {
            break;
        }
        at += 2;
    }
    (path, at)
}

fn is_of_tests(attribute: &TokenStream) -> bool {
    let text: String = attribute.to_string().split_whitespace().collect();
    text == "cfg(test)" || text == "test" || text.starts_with("cfg(all(test")
}

/// Behind the item that begins at `at`: after its braces or its semicolon.
fn after_item(tokens: &[TokenTree], at: usize) -> usize {
    for (next, token) in tokens.iter().enumerate().skip(at) {
        let ends = match token {
            TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
            token => is_punct(token, ';'),
        };
        // `use a::{b};` and `const A: T = T { … };` go on after their braces.
        if ends && !matches!(tokens.get(next + 1), Some(more) if is_punct(more, ';')) {
            return next + 1;
        }
    }
    tokens.len()
}

fn is_punct(token: &TokenTree, what: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == what)
}
