//! Two JSON values held against each other, leaf by leaf.

use std::borrow::Cow;
use std::fmt::Write as _;

use mirror_wire::body::json::{Node, Number};
use mirror_wire::body::pointer::{Pointers, push_token};
use mirror_wire::body::words::{excerpts, number_pair, short};

use super::distribution::{self, Label};
use super::places::{Places, Values};

/// What the comparison goes by.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    pub(super) ignore: Pointers,
    pub(super) tolerance: Tolerance,
    /// Where the prediction is; empty when none is named.
    pub(super) prediction: Pointers,
    /// What must not be quoted.
    pub(super) redact: Pointers,
}

/// How far numbers may be from each other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tolerance {
    /// By so much,
    pub absolute: f64,
    /// or by this part of the larger one.
    pub relative: f64,
}

impl Tolerance {
    /// Whether two numbers are equal.
    ///
    /// Two integers are subtracted exactly, and only the absolute tolerance counts: they are
    /// identifiers and counts more often than measurements. Otherwise both tolerances count, the
    /// relative one as a part of the larger magnitude. What is not a number (tensors may hold such)
    /// is equal to its like, and an infinity to itself alone.
    pub fn equal(self, a: Number, b: Number) -> bool {
        if a == b || (a.as_f64().is_nan() && b.as_f64().is_nan()) {
            return true;
        }
        let difference = a.distance(b);
        let integers = a.is_integer() && b.is_integer();
        let larger = a.as_f64().abs().max(b.as_f64().abs());
        let tolerated = if integers {
            self.absolute
        } else {
            self.absolute.max(self.relative * larger)
        };
        difference.is_finite() && difference <= tolerated
    }
}

/// What a walk found.
#[derive(Debug)]
pub(super) struct Finding {
    /// Leaves held against each other; a leaf that only one side has counts as well.
    pub(super) compared: u64,
    /// Leaves that are equal.
    pub(super) agreeing: u64,
    /// The difference to name, if there is any.
    pub(super) difference: Option<String>,
    /// Where there are differences.
    pub(super) places: Places,
}

/// A difference in words.
struct Named {
    pointer: String,
    words: String,
}

/// Differences besides the first that are named.
const MORE: usize = 3;

/// Characters of a pointer to one of them.
const POINTER: usize = 48;

/// Holds `production` against `shadow`.
pub(super) fn compare<'n>(
    rules: &'n Rules,
    production: &'n Node<'n>,
    shadow: &'n Node<'n>,
) -> Finding {
    let mut walk = Walk {
        rules,
        path: Vec::new(),
        compared: 0,
        agreeing: 0,
        differences: 0,
        first: None,
        answer: None,
        pointers: Vec::new(),
        places: Places::default(),
    };
    let prediction = match &rules.prediction {
        pointers if pointers.is_empty() => Place::Outside,
        pointers => Place::Above(pointers).settled(),
    };
    let ignore = (!rules.ignore.is_empty()).then_some(&rules.ignore);
    walk.nodes(production, shadow, ignore, prediction);
    let named = walk.answer.take().or_else(|| walk.first.take());
    let difference = named.map(|Named { pointer, words }| {
        let more = walk.differences - 1;
        format!(
            "{pointer}: {words}{}",
            more_words(more, &pointer, &walk.pointers)
        )
    });
    Finding {
        compared: walk.compared,
        agreeing: walk.agreeing,
        difference,
        places: walk.places,
    }
}

/// `; 5 more differences: /created, /id, /model, …`, or nothing.
fn more_words(more: u64, named: &str, pointers: &[String]) -> String {
    if more == 0 {
        return String::new();
    }
    let plural = if more == 1 { "" } else { "s" };
    let mut words = format!("; {more} more difference{plural}");
    let others: Vec<&String> = pointers.iter().filter(|other| *other != named).collect();
    let shown = others
        .iter()
        .take(MORE)
        .map(|pointer| match pointer.char_indices().nth(POINTER) {
            Some((end, _)) => format!("{}…", &pointer[..end]),
            None => (*pointer).clone(),
        });
    let shown: Vec<String> = shown.collect();
    if !shown.is_empty() {
        let rest = if more > shown.len() as u64 {
            ", …"
        } else {
            ""
        };
        let _ = write!(words, ": {}{rest}", shown.join(", "));
    }
    words
}

/// Where a node lies as the prediction pointer sees it.
#[derive(Clone, Copy)]
enum Place<'n> {
    Outside,
    Above(&'n Pointers),
    Inside,
}

impl<'n> Place<'n> {
    fn settled(self) -> Self {
        match self {
            Self::Above(pointers) if pointers.is_named() => Self::Inside,
            other => other,
        }
    }

    fn child(self, step: impl FnOnce(&'n Pointers) -> Option<&'n Pointers>) -> Self {
        match self {
            Self::Above(pointers) => step(pointers).map_or(Self::Outside, Self::Above).settled(),
            other => other,
        }
    }

    /// Whether an array here holds the prediction: at the pointer, under it, or spread by its `*`.
    fn holds_numbers(self) -> bool {
        match self {
            Self::Outside => false,
            Self::Inside => true,
            Self::Above(pointers) => pointers.index(usize::MAX).is_some_and(Pointers::is_named),
        }
    }
}

#[derive(Clone, Copy)]
enum Step<'n> {
    Key(&'n str),
    Index(usize),
}

struct Walk<'n> {
    rules: &'n Rules,
    path: Vec<Step<'n>>,
    compared: u64,
    agreeing: u64,
    differences: u64,
    /// The first difference, in words.
    first: Option<Named>,
    /// The first difference in what the model said: named before all others.
    answer: Option<Named>,
    /// Where the first differences are, one more than are named.
    pointers: Vec<String>,
    places: Places,
}

/// The numbers of one array that differ.
struct Numbers {
    differing: u64,
    /// Index and distance of those furthest apart.
    largest: Option<(usize, f64)>,
}

impl<'n> Walk<'n> {
    fn nodes(
        &mut self,
        production: &'n Node<'n>,
        shadow: &'n Node<'n>,
        ignore: Option<&'n Pointers>,
        prediction: Place<'n>,
    ) {
        if ignore.is_some_and(Pointers::is_named) {
            return;
        }
        match (production, shadow) {
            (Node::Array(a), Node::Array(b)) if !(a.is_empty() && b.is_empty()) => {
                self.arrays(a, b, ignore, prediction);
            }
            (Node::Object(a), Node::Object(b)) if !(a.is_empty() && b.is_empty()) => {
                self.objects(a, b, ignore, prediction);
            }
            (Node::Number(a), Node::Number(b)) if self.rules.tolerance.equal(*a, *b) => {
                self.agree()
            }
            (a, b) if a == b => self.agree(),
            (a, b) => {
                self.compared += a.leaves().max(b.leaves());
                let answer = matches!(prediction, Place::Inside);
                self.differ(answer, Values::of(a, b), |walk| walk.became(a, b));
            }
        }
    }

    fn agree(&mut self) {
        self.compared += 1;
        self.agreeing += 1;
    }

    /// Notes a difference here; words are only made for those that are named.
    fn differ(
        &mut self,
        answer: bool,
        values: Values,
        words: impl FnOnce(&Self) -> Cow<'static, str>,
    ) {
        self.differences += 1;
        if self.places.wants() {
            let (place, redacted) = self.pointer(true);
            let values = match (answer, redacted) {
                (_, true) => Values::Redacted,
                (true, false) => Values::Prediction,
                (false, false) => values,
            };
            self.places.add(place, values);
            if self.pointers.len() <= MORE {
                let (pointer, _) = self.pointer(false);
                if !self.pointers.contains(&pointer) {
                    self.pointers.push(pointer);
                }
            }
        }
        let taken = if answer { &self.answer } else { &self.first };
        if taken.is_some() {
            return;
        }
        let (pointer, redacted) = self.pointer(false);
        let words = if redacted {
            "differs (redacted)".into()
        } else {
            words(self)
        };
        let words = words.into_owned();
        *(if answer {
            &mut self.answer
        } else {
            &mut self.first
        }) = Some(Named { pointer, words });
    }

    fn step<R>(&mut self, step: Step<'n>, visit: impl FnOnce(&mut Self) -> R) -> R {
        self.path.push(step);
        let result = visit(self);
        self.path.pop();
        result
    }

    fn arrays(
        &mut self,
        production: &'n [Node<'n>],
        shadow: &'n [Node<'n>],
        ignore: Option<&'n Pointers>,
        prediction: Place<'n>,
    ) {
        let mut numbers = Numbers {
            differing: 0,
            largest: None,
        };
        for (index, (p, s)) in production.iter().zip(shadow).enumerate() {
            let ignore = ignore.and_then(|ignore| ignore.index(index));
            if let (Node::Number(p), Node::Number(s)) = (p, s) {
                if ignore.is_some_and(Pointers::is_named) {
                    continue;
                }
                self.compared += 1;
                if self.rules.tolerance.equal(*p, *s) {
                    self.agreeing += 1;
                } else {
                    numbers.add(index, *p, *s);
                }
                continue;
            }
            let prediction = prediction.child(|pointers| pointers.index(index));
            self.step(Step::Index(index), |walk| {
                walk.nodes(p, s, ignore, prediction);
            });
        }
        if numbers.differing > 0 {
            self.numbers(&numbers, production, shadow, prediction);
        }
        self.lengths(production, shadow, ignore);
    }

    /// Elements that only one side has.
    fn lengths(
        &mut self,
        production: &'n [Node<'n>],
        shadow: &'n [Node<'n>],
        ignore: Option<&'n Pointers>,
    ) {
        let common = production.len().min(shadow.len());
        let rest = production[common..].iter().chain(&shadow[common..]);
        let mut extra = 0;
        for (index, node) in (common..).zip(rest) {
            let ignored = ignore.and_then(|ignore| ignore.index(index));
            if !ignored.is_some_and(Pointers::is_named) {
                extra += node.leaves();
            }
        }
        if extra > 0 {
            self.compared += extra;
            let (from, to) = (production.len(), shadow.len());
            self.differ(false, Values::Length, |_| {
                format!("{from} elements became {to}").into()
            });
        }
    }

    /// Names the largest difference in an array of numbers, and what became of the label.
    fn numbers(
        &mut self,
        numbers: &Numbers,
        production: &[Node<'n>],
        shadow: &[Node<'n>],
        prediction: Place<'n>,
    ) {
        let labels = prediction
            .holds_numbers()
            .then(|| labels(production).zip(labels(shadow)))
            .flatten()
            .filter(|_| production.len() == shadow.len());
        if let Some((was, now)) = &labels
            && let Some(row) = was.iter().zip(now).position(|(p, s)| p.index != s.index)
        {
            let width = production.len() / was.len();
            self.differ(true, Values::Number, |walk| {
                walk.relabelled(was, now, row, width)
            });
            return;
        }
        let Some((index, distance)) = numbers.largest else {
            return;
        };
        let (Some(p), Some(s)) = (production[index].number(), shadow[index].number()) else {
            return;
        };
        let (differing, of) = (numbers.differing, production.len().max(shadow.len()));
        let holds = prediction.holds_numbers();
        self.differ(holds, Values::Number, |walk| {
            if (0..of).any(|index| walk.hides(index)) {
                return format!("{differing} of {of} numbers differ (redacted)").into();
            }
            let differ = match differing {
                1 => "differs, at",
                _ => "differ, most at",
            };
            let (p, s) = number_pair(p, s);
            let by = short(distance);
            let mut words = format!(
                "{differing} of {of} numbers {differ} index {index}: {p} became {s} (by {by})"
            );
            match labels.as_ref().map(|(was, _)| was.as_slice()) {
                Some([only]) => _ = write!(words, "; the label agrees ({})", only.index),
                Some(all) => _ = write!(words, "; all {} labels agree", all.len()),
                None => {}
            }
            words.into()
        });
    }

    /// The words for a label that changed in `row` of `width` numbers.
    fn relabelled(
        &self,
        was: &[Label],
        now: &[Label],
        row: usize,
        width: usize,
    ) -> Cow<'static, str> {
        let (rows, was, now) = (was.len(), was[row], now[row]);
        if (row * width..(row + 1) * width).any(|index| self.hides(index)) {
            return "the label changed (redacted)".into();
        }
        let place = match rows {
            1 => String::new(),
            rows => format!(" in row {row} of {rows}"),
        };
        let probability = Number::Float(was.probability);
        let (p, s) = number_pair(probability, Number::Float(now.probability));
        let (was, now) = (was.index, now.index);
        format!("label {was} became {now}{place} (probability {p}, now {s})").into()
    }

    fn objects(
        &mut self,
        production: &'n [(Cow<'n, str>, Node<'n>)],
        shadow: &'n [(Cow<'n, str>, Node<'n>)],
        ignore: Option<&'n Pointers>,
        prediction: Place<'n>,
    ) {
        // Both are sorted by name: one pass over the two.
        let (mut p, mut s) = (production.iter().peekable(), shadow.iter().peekable());
        loop {
            let order = match (p.peek(), s.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => return,
            };
            let left = order.is_le().then(|| p.next()).flatten();
            let right = order.is_ge().then(|| s.next()).flatten();
            let Some((key, _)) = left.or(right) else {
                return;
            };
            let ignore = ignore.and_then(|ignore| ignore.key(key));
            let prediction = prediction.child(|pointers| pointers.key(key));
            self.step(Step::Key(key), |walk| match (left, right) {
                (Some((_, p)), Some((_, s))) => walk.nodes(p, s, ignore, prediction),
                (Some((_, only)), None) => walk.missing(only, "production's", ignore, prediction),
                (None, Some((_, only))) => walk.missing(only, "the shadow's", ignore, prediction),
                (None, None) => {}
            });
        }
    }

    fn missing(
        &mut self,
        only: &Node<'_>,
        whose: &'static str,
        ignore: Option<&Pointers>,
        prediction: Place<'n>,
    ) {
        if ignore.is_some_and(Pointers::is_named) {
            return;
        }
        self.compared += only.leaves();
        let answer = matches!(prediction, Place::Inside);
        self.differ(answer, Values::Missing, |_| {
            format!("only in {whose} answer").into()
        });
    }

    /// The words for two values that are not two arrays or two objects.
    fn became(&self, production: &Node<'_>, shadow: &Node<'_>) -> Cow<'static, str> {
        match (production, shadow) {
            (Node::Number(a), Node::Number(b)) => {
                let (p, s) = number_pair(*a, *b);
                if a.is_integer() && b.is_integer() {
                    return format!("{p} became {s}").into();
                }
                format!("{p} became {s} (by {})", short(a.distance(*b))).into()
            }
            (Node::Text(a), Node::Text(b)) => {
                let (a, b) = excerpts(a, b);
                format!("{a} became {b}").into()
            }
            (a, b) => format!("{} became {}", describe(a), describe(b)).into(),
        }
    }

    /// The pointer to here, with `*` for indices where it is to be `general`, and whether its value is
    /// redacted. It ends at what is redacted: the names of members under it are not shown.
    fn pointer(&self, general: bool) -> (String, bool) {
        let mut pointer = String::new();
        let mut redact = Some(&self.rules.redact);
        let mut hidden = redact.is_some_and(Pointers::is_named);
        for step in &self.path {
            if hidden {
                break;
            }
            match step {
                Step::Key(key) => {
                    redact = redact.and_then(|redact| redact.key(key));
                    push_token(&mut pointer, key);
                }
                Step::Index(index) => {
                    redact = redact.and_then(|redact| redact.index(*index));
                    if general {
                        pointer.push_str("/*");
                    } else {
                        let _ = write!(pointer, "/{index}");
                    }
                }
            }
            hidden = redact.is_some_and(Pointers::is_named);
        }
        if pointer.is_empty() && !general {
            pointer.push_str("the answer");
        }
        (pointer, hidden)
    }

    /// Whether element `index` of the array here is redacted.
    fn hides(&self, index: usize) -> bool {
        let here = self
            .path
            .iter()
            .try_fold(&self.rules.redact, |redact, step| match step {
                Step::Key(key) => redact.key(key),
                Step::Index(index) => redact.index(*index),
            });
        here.and_then(|redact| redact.index(index))
            .is_some_and(Pointers::is_named)
    }
}

impl Numbers {
    fn add(&mut self, index: usize, production: Number, shadow: Number) {
        self.differing += 1;
        let distance = production.distance(shadow);
        let distance = if distance.is_nan() {
            f64::INFINITY
        } else {
            distance
        };
        if self.largest.is_none_or(|(_, largest)| distance > largest) {
            self.largest = Some((index, distance));
        }
    }
}

fn labels(values: &[Node<'_>]) -> Option<Vec<Label>> {
    let numbers = values.iter().map(|node| node.number().map(Number::as_f64));
    distribution::labels(&numbers.collect::<Option<Vec<f64>>>()?)
}

fn describe(node: &Node<'_>) -> String {
    match node {
        Node::Null => "null".to_owned(),
        Node::Bool(value) => value.to_string(),
        Node::Number(value) => number_pair(*value, *value).0,
        Node::Text(value) => excerpts(value, "").0,
        Node::Array(items) => format!("an array of {}", items.len()),
        Node::Object(_) => "an object".to_owned(),
    }
}
