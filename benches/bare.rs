//! A program that reads an XML text from standard input, parses it, and does nothing else: `./bench` holds the hook
//! against it.

use std::io::Read;

fn main() {
    let mut text = String::with_capacity(64 << 10);
    std::io::stdin().read_to_string(&mut text).expect("text");
    let document = roxmltree::Document::parse(&text).expect("XML");
    assert!(document.root_element().is_element());
}
