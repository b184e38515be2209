//! Domains in many spellings: any quotes, blanks, line ends, indentation, comments and character references.

use std::borrow::Cow;

/// An element, a comment or text, before it is spelled.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Element(&'static str, Vec<(&'static str, String)>, Vec<Item>),
    Raw(Cow<'static, str>),
}

pub(crate) fn leaf(name: &'static str, attributes: &[(&'static str, &str)]) -> Item {
    let attributes = attributes.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Item::Element(name, attributes, Vec::new())
}

/// Spells items, taking every choice from a tape of random bytes.
pub(crate) struct Pen<'a> {
    pub(crate) out: String,
    pub(crate) tape: std::iter::Cycle<std::slice::Iter<'a, u8>>,
    pub(crate) newline: &'static str,
    pub(crate) indent: &'static str,
}

impl Pen<'_> {
    pub(crate) fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(*self.tape.next().unwrap_or(&0)) % choices.len()]
    }

    fn line(&mut self, depth: usize) {
        self.out.push_str(self.newline);
        self.out.push_str(&self.indent.repeat(depth));
    }

    pub(crate) fn item(&mut self, item: &Item, depth: usize) {
        let Item::Element(name, attributes, children) = item else {
            if let Item::Raw(text) = item {
                self.out.push_str(text);
            }
            return;
        };
        self.out.push_str(&format!("<{name}"));
        for (name, value) in attributes {
            let gap = self.choose(&[" ", " ", " ", "  ", "\n", "\t"]);
            let equals = self.choose(&["=", "=", "=", " = ", "=\n"]);
            let quote = self.choose(&['\'', '\'', '"']);
            let value = match self.choose(&[0, 0, 0, 1]) {
                0 => value
                    .replace('&', "&amp;")
                    .replace('<', "&lt;")
                    .replace('\'', "&apos;")
                    .replace('"', "&quot;"),
                _ => value.chars().map(|c| format!("&#x{:x};", u32::from(c))).collect(),
            };
            self.out.push_str(&format!("{gap}{name}{equals}{quote}{value}{quote}"));
        }
        let blank = self.choose(&["", "", "", " ", "\n"]);
        if children.is_empty() && self.choose(&[true, true, false]) {
            self.out.push_str(&format!("{blank}/>"));
            return;
        }
        self.out.push_str(&format!("{blank}>"));
        for child in children {
            match self.choose(&[0, 0, 0, 0, 0, 1, 2]) {
                1 => {}
                2 => {
                    self.line(depth + 1);
                    self.out.push_str("<!-- <cpu> -->");
                }
                _ => self.line(depth + 1),
            }
            self.item(child, depth + 1);
            if self.choose(&[false, false, false, false, true]) {
                self.out.push_str(" <!-- note -->");
            }
        }
        if !children.is_empty() || self.choose(&[true, false]) {
            self.line(depth);
        }
        let blank = self.choose(&["", "", "", " ", "\n"]);
        self.out.push_str(&format!("</{name}{blank}>"));
    }
}
