//! The file of headers that a hook is called with: tokens, most often.

use std::fs;
use std::path::Path;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use mirror_base::private_file;

/// What a credential has at least: fewer characters can be guessed.
const SHORTEST: usize = 16;

/// Far more than headers are.
const LARGEST: u64 = 64 << 10;

/// Reads `Name: value` lines; empty ones, and those that begin with `#`, say nothing. What the lines hold
/// is in no error.
///
/// # Errors
/// When it cannot be read, others may read it (as with the key's file), or a line is no header.
pub(super) fn read(file: &Path) -> Result<HeaderMap, String> {
    let shown = file.display();
    let refuse = |error: std::io::Error| format!("headers_file {shown}: {error}");
    let about = fs::metadata(file).map_err(refuse)?;
    if let Some(exposed) = private_file::exposed(&about) {
        return Err(format!(
            "headers_file {shown} {exposed}: run `chmod 600 {shown}`"
        ));
    }
    if !about.is_file() || about.len() > LARGEST {
        return Err(format!(
            "headers_file {shown} is not a file of at most {LARGEST} bytes"
        ));
    }
    let text = fs::read_to_string(file).map_err(refuse)?;
    let mut headers = HeaderMap::new();
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = header(line).ok_or_else(|| {
            format!("headers_file {shown}, line {number}: write `Name: value`, such as `Authorization: Bearer TOKEN`")
        })?;
        if name == AUTHORIZATION && token(&value).len() < SHORTEST {
            return Err(format!(
                "headers_file {shown}, line {number}: the token has fewer than {SHORTEST} characters, and could be guessed"
            ));
        }
        headers.append(name, value);
    }
    Ok(headers)
}

/// What stands behind the scheme: `Bearer TOKEN`.
fn token(value: &HeaderValue) -> &[u8] {
    let value = value.as_bytes();
    let scheme = value.iter().position(|byte| *byte == b' ');
    scheme.map_or(value, |end| value[end..].trim_ascii())
}

fn header(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
    let mut value = HeaderValue::from_str(value.trim()).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[track_caller]
    fn check(mode: u32, text: &str, expected: Result<&[(&str, &str)], &str>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("headers");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        match (read(&file), expected) {
            (Ok(headers), Ok(expected)) => {
                let found = headers
                    .iter()
                    .map(|(n, v)| (n.as_str(), v.to_str().unwrap()));
                assert_eq!(found.collect::<Vec<_>>(), expected);
                assert!(!format!("{headers:?}").contains("hush"));
            }
            (Err(why), Err(words)) => {
                assert!(why.contains(words) && !why.contains("hush"), "{why}");
            }
            (found, _) => panic!("{found:?}"),
        }
    }

    #[test]
    fn headers_are_for_their_user_alone() {
        let text = "# of the pipeline\n\nAuthorization: Bearer hush-hush-hush-hush\nx-key:hush:2\n";
        let headers: &[_] = &[
            ("authorization", "Bearer hush-hush-hush-hush"),
            ("x-key", "hush:2"),
        ];
        check(0o600, text, Ok(headers));
        check(0o640, text, Err("open to its group (mode 0640)"));
        let short = "authorization: Bearer hush";
        check(0o600, short, Err("fewer than 16 characters"));
        check(0o644, text, Err("open to everybody (mode 0644)"));
        check(0o600, "Bearer hush", Err("line 1: write `Name: value`"));
        check(0o600, "a: b\nx y: hush", Err("line 2"));
        assert!(read(Path::new("/none")).unwrap_err().contains("/none"));
    }
}
