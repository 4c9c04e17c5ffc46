//! The report for a terminal, at most 97 columns wide.

use std::fmt;

use comfy_table::{CellAlignment, ContentArrangement, Table};
use mirror_api::plain;

use super::sections::{Cell, Section, heading, labels_read, sections};
use super::{Report, Service};

const WIDTH: u16 = 96;

/// Characters of the longest bar.
const BAR: f64 = 24.0;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.services.is_empty() {
            let folder = self.record_dir.display();
            return writeln!(f, "No records in {folder}: nothing was compared yet.");
        }
        for (index, service) in self.services.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{service}")?;
        }
        if let Some(read) = &self.labels {
            write!(f, "{}", labels_read(read))?;
        }
        Ok(())
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", plain::line(&heading(self), usize::MAX))?;
        sections(self)
            .iter()
            .try_for_each(|section| write!(f, "{section}"))
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        if !self.title.is_empty() {
            writeln!(f, "  {}", self.title)?;
        }
        for line in self.table().to_string().lines() {
            writeln!(f, " {}", line.trim_end())?;
        }
        for line in self.more.iter().flat_map(|more| more.lines()) {
            writeln!(f, "  {}", plain::line(line, usize::MAX))?;
        }
        Ok(())
    }
}

impl Section {
    fn table(&self) -> Table {
        let mut table = Table::new();
        table
            .load_preset(comfy_table::presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(WIDTH);
        if !self.head.is_empty() {
            table.set_header(&self.head);
        }
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| match cell {
                Cell::Text(text) => plain::line(text, usize::MAX),
                Cell::Bar(part) => bar(*part),
            }));
        }
        for &index in &self.figures {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

fn bar(part: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (part.clamp(0.0, 1.0) * BAR * 8.0).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    bar.push_str(EIGHTHS[eighths % 8]);
    bar
}
