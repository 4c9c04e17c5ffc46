//! Sets of JSON pointers (RFC 6901) in which `*` stands for every member of one level.

/// Places in a JSON document, as a tree that is walked along with the document.
///
/// `/a/b`, `/a/*/c` and the empty pointer (the whole document) are understood; `~0` and `~1` stand
/// for `~` and `/`. A member whose name is `*` cannot be named alone. What lies under a named place
/// is not in the tree: whoever walks stops there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pointers {
    named: bool,
    any: Option<Box<Pointers>>,
    members: Vec<Member>,
}

/// A member that some pointer names, with all that goes on from there, `*` included.
#[derive(Clone, Debug, PartialEq)]
struct Member {
    key: String,
    index: Option<usize>,
    rest: Pointers,
}

impl Pointers {
    /// The set of `pointers`. A missing first `/` is forgiven.
    pub fn new<S: AsRef<str>>(pointers: &[S]) -> Self {
        let pointers: Vec<Vec<String>> = pointers.iter().map(|p| tokens(p.as_ref())).collect();
        let rests: Vec<&[String]> = pointers.iter().map(Vec::as_slice).collect();
        Self::of(&rests)
    }

    fn of(pointers: &[&[String]]) -> Self {
        let after = |key: Option<&str>| -> Vec<&[String]> {
            let matches = |first: &str| first == "*" || Some(first) == key;
            let rests = pointers.iter().filter_map(|tokens| tokens.split_first());
            rests
                .filter(|(first, _)| matches(first))
                .map(|(_, rest)| rest)
                .collect()
        };
        let mut keys: Vec<&str> = pointers
            .iter()
            .filter_map(|tokens| tokens.first().map(String::as_str))
            .filter(|&first| first != "*")
            .collect();
        keys.sort_unstable();
        keys.dedup();
        let any = after(None);
        Self {
            named: pointers.iter().any(|tokens| tokens.is_empty()),
            any: (!any.is_empty()).then(|| Box::new(Self::of(&any))),
            members: keys
                .into_iter()
                .map(|key| Member {
                    key: key.to_owned(),
                    index: index(key),
                    rest: Self::of(&after(Some(key))),
                })
                .collect(),
        }
    }

    /// Whether no place is named at all.
    pub fn is_empty(&self) -> bool {
        !self.named && self.any.is_none() && self.members.is_empty()
    }

    /// Whether a pointer names this very place, and so all that lies under it.
    pub fn is_named(&self) -> bool {
        self.named
    }

    /// What is named in the object member `key`.
    pub fn key(&self, key: &str) -> Option<&Self> {
        let member = self.members.iter().find(|member| member.key == key);
        member.map_or(self.any.as_deref(), |member| Some(&member.rest))
    }

    /// What is named in the array element `index`.
    pub fn index(&self, index: usize) -> Option<&Self> {
        let member = self.members.iter().find(|m| m.index == Some(index));
        member.map_or(self.any.as_deref(), |member| Some(&member.rest))
    }

    /// Whether a pointer with a `*` is among them, so that it may name several places.
    pub fn has_wildcard(&self) -> bool {
        self.any.is_some() || self.members.iter().any(|m| m.rest.has_wildcard())
    }
}

fn tokens(pointer: &str) -> Vec<String> {
    if pointer.is_empty() {
        return Vec::new();
    }
    let pointer = pointer.strip_prefix('/').unwrap_or(pointer);
    let unescape = |token: &str| token.replace("~1", "/").replace("~0", "~");
    pointer.split('/').map(unescape).collect()
}

/// An array index as RFC 6901, section 4, has it: digits without a leading zero.
fn index(token: &str) -> Option<usize> {
    let digits = token.bytes().all(|b| b.is_ascii_digit());
    let leading_zero = token.len() > 1 && token.starts_with('0');
    (digits && !leading_zero)
        .then(|| token.parse().ok())
        .flatten()
}

/// Writes `key` as one token of a JSON pointer.
pub fn push_token(pointer: &mut String, key: &str) {
    pointer.push('/');
    for character in key.chars() {
        match character {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            other => pointer.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pointers: &[&str], path: &[&str], expected: bool) {
        let set = Pointers::new(pointers);
        let place = path.iter().try_fold(&set, |set, token| {
            if set.is_named() {
                return Some(set);
            }
            index(token).map_or_else(|| set.key(token), |index| set.index(index))
        });
        let named = place.is_some_and(Pointers::is_named);
        assert_eq!(named, expected, "{path:?} in {pointers:?}");
    }

    #[test]
    fn pointers_name_places_and_what_is_under_them() {
        check(&[], &[], false);
        check(&[""], &["a"], true);
        check(&["/a"], &["a"], true);
        check(&["/a"], &["a", "b"], true);
        check(&["/a/b"], &["a"], false);
        check(&["/a/0"], &["a", "0"], true);
        check(&["/a/1"], &["a", "0"], false);
        check(&["/a~1b/m~0n"], &["a/b", "m~n"], true);
        check(&["/*/id"], &["anything", "id"], true);
        check(&["/*/id"], &["7", "id"], true);
        check(&["/*/id"], &["id"], false);
    }

    #[test]
    fn a_star_and_a_name_work_side_by_side() {
        let pointers = ["/outputs/*/id", "/outputs/0/time"];
        check(&pointers, &["outputs", "0", "id"], true);
        check(&pointers, &["outputs", "0", "time"], true);
        check(&pointers, &["outputs", "1", "time"], false);
        check(&pointers, &["outputs", "1", "id"], true);
    }
}
