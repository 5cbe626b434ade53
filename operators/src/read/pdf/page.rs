//! A page with nothing on it but its text: what draws lines, colours and images is left out, and forms (pieces of a page that
//! are drawn by name) stand where they are drawn. The extractor panics on much of what is left out, knows no form's place on
//! the page, and follows a form that draws itself without end.

use std::collections::HashSet;

use pdf_extract::{
    Dictionary, Document as Pdf, Object, ObjectId, Stream,
    content::{Content, Operation},
};

/// Forms in forms, or steps up the tree of pages, beyond which a page is refused.
const DEEPEST: usize = 32;
/// A page that takes more steps to draw is refused.
const MOST_STEPS: usize = 4_000_000;
/// The page size of a page that says none: US letter, in points.
const LETTER: [i64; 4] = [0, 0, 612, 792];

/// Why a page is refused: the reason, and more of it.
pub(super) type Refused = (&'static str, String);

/// What became of a page.
pub(super) struct Flat {
    /// Its new content, to be removed after use.
    pub(super) content: ObjectId,
    /// Whether images were drawn on it.
    pub(super) images: bool,
}

/// Gives a page content that holds text alone.
///
/// # Errors
/// When the page can't be read, or is too large to draw.
pub(super) fn flatten(pdf: &mut Pdf, page: ObjectId) -> Result<Flat, Refused> {
    let bad = |why: &str| ("bad_page", format!("can't be read: {why}"));
    let dictionary = pdf.get_dictionary(page).map_err(|error| bad(&error.to_string()))?;
    let size = inherited(pdf, dictionary, b"MediaBox").ok_or_else(|| bad("the tree of pages has no end"))?;
    let size = size.and_then(|size| numbers(pdf, size)).filter(|size| size.len() == 4);
    let resources = inherited(pdf, dictionary, b"Resources").ok_or_else(|| bad("the tree of pages has no end"))?;
    let content = pdf.get_page_content(page).map_err(|error| bad(&error.to_string()))?;
    let mut drawing = Drawing { pdf: &*pdf, steps: 0, images: false, open: HashSet::new(), fonts: Vec::new(), kept: Vec::new() };
    drawing.draw(&content, resources.and_then(|resources| resources.as_dict().ok()), DEEPEST)?;
    let (images, fonts, kept) = (drawing.images, drawing.fonts, drawing.kept);
    let content = Content { operations: kept }.encode().map_err(|error| bad(&error.to_string()))?;
    let mut named = Dictionary::new();
    for (number, font) in fonts.into_iter().enumerate() {
        named.set(format!("F{number}"), font);
    }
    let mut resources = Dictionary::new();
    resources.set("Font", Object::Dictionary(named));
    let size = size.unwrap_or_else(|| LETTER.map(Object::Integer).to_vec());
    let content = pdf.add_object(Stream::new(Dictionary::new(), content));
    let page = pdf.get_object_mut(page).and_then(Object::as_dict_mut).map_err(|error| bad(&error.to_string()))?;
    page.set("Contents", Object::Reference(content));
    page.set("Resources", Object::Dictionary(resources));
    page.set("MediaBox", Object::Array(size));
    page.remove(b"ArtBox");
    Ok(Flat { content, images })
}

/// An attribute of a page or of what stands above it in the tree of pages; no `Some`, if the tree has no end.
fn inherited<'a>(pdf: &'a Pdf, page: &'a Dictionary, key: &[u8]) -> Option<Option<&'a Object>> {
    let mut at = page;
    for _ in 0..DEEPEST {
        if let Ok(found) = at.get_deref(key, pdf) {
            return Some(Some(found));
        }
        match at.get_deref(b"Parent", pdf).and_then(Object::as_dict) {
            Ok(parent) => at = parent,
            Err(_) => return Some(None),
        }
    }
    None
}

/// A list of numbers, each of them there and not a reference.
fn numbers(pdf: &Pdf, list: &Object) -> Option<Vec<Object>> {
    let number = |item| {
        let (_, item) = pdf.dereference(item).ok()?;
        matches!(item, Object::Integer(_) | Object::Real(_)).then(|| item.clone())
    };
    list.as_array().ok()?.iter().map(number).collect()
}

struct Drawing<'a> {
    pdf: &'a Pdf,
    steps: usize,
    images: bool,
    /// Forms that are being drawn.
    open: HashSet<ObjectId>,
    /// Fonts in use: the page's and its forms' share one list, in which `F0`, `F1`, ... are the places.
    fonts: Vec<Object>,
    kept: Vec<Operation>,
}

impl Drawing<'_> {
    fn draw(&mut self, content: &[u8], resources: Option<&Dictionary>, depth: usize) -> Result<(), Refused> {
        let decoded = Content::decode(content).map_err(|error| ("bad_page", format!("can't be read: {error}")))?;
        // Whether a font is chosen, as it was at each `q`: text without one can't be read.
        let mut font = false;
        let mut saved = Vec::new();
        for operation in decoded.operations {
            self.steps += 1;
            if self.steps > MOST_STEPS {
                return Err(("too_large", format!("takes more than {MOST_STEPS} steps to draw")));
            }
            let Operation { operator, operands } = operation;
            let numeric = |count: usize| {
                operands.len() == count && operands.iter().all(|item| matches!(item, Object::Integer(_) | Object::Real(_)))
            };
            match operator.as_str() {
                "q" => saved.push(font),
                "Q" => match saved.pop() {
                    Some(before) => font = before,
                    None => continue,
                },
                "BT" | "ET" | "T*" => {}
                "cm" | "Tm" if numeric(6) => {}
                "Td" | "TD" if numeric(2) => {}
                "Tc" | "Tw" | "Tz" | "TL" | "Ts" if numeric(1) => {}
                "Tf" => {
                    let chosen = match operands.as_slice() {
                        [Object::Name(name), size @ (Object::Integer(_) | Object::Real(_))] => {
                            self.font(resources, name).map(|name| vec![Object::Name(name), size.clone()])
                        }
                        _ => None,
                    };
                    font = chosen.is_some();
                    if let Some(operands) = chosen {
                        self.kept.push(Operation::new("Tf", operands));
                    }
                    continue;
                }
                "Tj" if font && matches!(operands.as_slice(), [Object::String(..)]) => {}
                "TJ" if font && matches!(operands.as_slice(), [Object::Array(_)]) => {}
                "'" if font && matches!(operands.as_slice(), [Object::String(..)]) => {
                    self.kept.push(Operation::new("T*", Vec::new()));
                    self.kept.push(Operation::new("Tj", operands));
                    continue;
                }
                "\"" if font => {
                    if let [word, character, text @ Object::String(..)] = operands.as_slice() {
                        self.kept.push(Operation::new("Tw", vec![word.clone()]));
                        self.kept.push(Operation::new("Tc", vec![character.clone()]));
                        self.kept.push(Operation::new("T*", Vec::new()));
                        self.kept.push(Operation::new("Tj", vec![text.clone()]));
                    }
                    continue;
                }
                "Do" => {
                    if let [Object::Name(name)] = operands.as_slice() {
                        self.form(resources, name, depth)?;
                    }
                    continue;
                }
                "BI" => {
                    self.images = true;
                    continue;
                }
                _ => continue,
            }
            self.kept.push(Operation { operator, operands });
        }
        // What a form leaves saved must not stay for the page around it.
        for _ in saved {
            self.kept.push(Operation::new("Q", Vec::new()));
        }
        Ok(())
    }

    /// The name under which a font of these resources is known; `None`, if there is no such font.
    fn font(&mut self, resources: Option<&Dictionary>, name: &[u8]) -> Option<Vec<u8>> {
        let pdf = self.pdf;
        let fonts = resources?.get_deref(b"Font", pdf).and_then(Object::as_dict).ok()?;
        let font = fonts.get(name).ok()?;
        pdf.dereference(font).ok()?.1.as_dict().ok()?;
        let place = self.fonts.iter().position(|known| known == font).unwrap_or_else(|| {
            self.fonts.push(font.clone());
            self.fonts.len() - 1
        });
        Some(format!("F{place}").into_bytes())
    }

    fn form(&mut self, resources: Option<&Dictionary>, name: &[u8], depth: usize) -> Result<(), Refused> {
        let pdf = self.pdf;
        let named = resources.and_then(|resources| resources.get_deref(b"XObject", pdf).and_then(Object::as_dict).ok());
        let Some(named) = named.and_then(|named| named.get(name).ok()) else { return Ok(()) };
        let Ok((Some(id), Object::Stream(stream))) = pdf.dereference(named) else { return Ok(()) };
        match stream.dict.get_deref(b"Subtype", pdf).and_then(Object::as_name) {
            Ok(b"Form") => {}
            Ok(b"Image") => {
                self.images = true;
                return Ok(());
            }
            _ => return Ok(()),
        }
        if depth == 0 || !self.open.insert(id) {
            return Err(("bad_page", "can't be read: it draws itself".to_owned()));
        }
        let own = stream.dict.get_deref(b"Resources", pdf).and_then(Object::as_dict).ok();
        let content = match stream.filters() {
            Ok(_) => stream.decompressed_content().map_err(|error| ("bad_page", format!("can't be read: {error}")))?,
            Err(_) => stream.content.clone(),
        };
        self.kept.push(Operation::new("q", Vec::new()));
        let matrix = stream.dict.get_deref(b"Matrix", pdf).ok().and_then(|matrix| numbers(pdf, matrix));
        if let Some(matrix) = matrix.filter(|matrix| matrix.len() == 6) {
            self.kept.push(Operation::new("cm", matrix));
        }
        self.draw(&content, own.or(resources), depth - 1)?;
        self.kept.push(Operation::new("Q", Vec::new()));
        self.open.remove(&id);
        Ok(())
    }
}
