//! The report as one page: no scripts, nothing loaded from elsewhere.

use std::fmt::Write as _;

use mirror_api::plain;

use super::Report;
use super::sections::{Cell, Section, heading, labels_read, sections};

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#222;background:#fff}\
h1{font-size:1.4rem}h2{font-size:1.2rem;margin-top:3rem;border-bottom:1px solid #ccc}\
h3{font-size:1rem;margin:1.6rem 0 .3rem}\
.wide{overflow-x:auto}table{border-collapse:collapse}\
td,th{padding:.1rem .8rem .1rem 0;text-align:left;font-weight:normal;vertical-align:top}\
th,.more{color:#666}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
.bar{display:block;height:.8rem;margin-top:.3rem;background:#4a7ebb}\
.track{width:12rem}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}\
h2{border-color:#444}th,.more{color:#999}}";

impl Report {
    /// The report as a self-contained HTML page. All that comes from traffic is escaped.
    pub fn to_html(&self) -> String {
        let mut page = String::new();
        page.push_str("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
        page.push_str("<meta name=\"viewport\" content=\"width=device-width\">");
        let policy = "default-src 'none'; style-src 'unsafe-inline'";
        let _ = write!(
            page,
            "<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">"
        );
        let _ = write!(
            page,
            "<title>modelmirror report</title><style>{STYLE}</style></head>"
        );
        page.push_str("<body>\n<h1>modelmirror report</h1>\n");
        if self.services.is_empty() {
            page.push_str("<p>Nothing was compared yet.</p>\n");
        }
        for service in &self.services {
            let _ = writeln!(page, "<h2>{}</h2>", escape(&heading(service)));
            for table in sections(service) {
                section(&mut page, &table);
            }
        }
        if let Some(read) = &self.labels {
            section(&mut page, &labels_read(read));
        }
        page.push_str("</body></html>\n");
        page
    }
}

fn section(page: &mut String, section: &Section) {
    if !section.title.is_empty() {
        let _ = writeln!(page, "<h3>{}</h3>", escape(section.title));
    }
    let class = |column: usize| match section.figures.contains(&column) {
        true => " class=\"n\"",
        false => "",
    };
    page.push_str("<div class=\"wide\"><table>\n");
    if !section.head.is_empty() {
        page.push_str("<tr>");
        for (column, name) in section.head.iter().enumerate() {
            let _ = write!(page, "<th{}>{}</th>", class(column), escape(name));
        }
        page.push_str("</tr>\n");
    }
    for row in &section.rows {
        page.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let _ = match cell {
                Cell::Text(text) => write!(page, "<td{}>{}</td>", class(column), escape(text)),
                Cell::Bar(part) => {
                    let width = part.clamp(0.0, 1.0) * 100.0;
                    let bar = format!("<span class=\"bar\" style=\"width:{width:.1}%\"></span>");
                    write!(page, "<td class=\"track\">{bar}</td>")
                }
            };
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
    if let Some(more) = &section.more {
        let more = escape(more).replace('\n', "<br>");
        let _ = writeln!(page, "<p class=\"more\">{more}</p>");
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' => escaped.push('\n'),
            odd if plain::is_odd(odd) => escaped.extend(odd.escape_default()),
            other => escaped.push(other),
        }
    }
    escaped
}
