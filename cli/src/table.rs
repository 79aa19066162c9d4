//! Plain tables: aligned columns, no borders, colours where wanted.

use comfy_table::{Attribute, Cell, CellAlignment, Color, Table as Grid, presets};

use crate::out::{Style, Tone};

/// A table under construction.
pub struct Table {
    grid: Grid,
    columns: usize,
    right: Vec<usize>,
}

/// One cell: a text and the tone it is shown in.
pub type Field = (String, Option<Tone>);

/// A cell without a tone.
pub fn plain(text: impl Into<String>) -> Field {
    (text.into(), None)
}

/// A cell with a tone.
pub fn toned(text: impl Into<String>, tone: Tone) -> Field {
    (text.into(), Some(tone))
}

/// A cell for a value that may be unknown: then a dim dash.
pub fn maybe(text: Option<String>) -> Field {
    text.map_or_else(|| toned("-", Tone::Dim), plain)
}

impl Table {
    /// A table with these headings; the columns in `right` are aligned to the right.
    pub fn new(style: Style, headings: &[&str], right: &[usize]) -> Self {
        let mut grid = Grid::new();
        // Never folded: a line stays a line, for eyes and for `grep`.
        grid.load_style(presets::NOTHING).force_no_tty();
        if style != Style::PLAIN {
            grid.enforce_styling();
        }
        let mut table = Self {
            grid,
            columns: headings.len(),
            right: right.to_vec(),
        };
        let cells: Vec<Cell> = headings
            .iter()
            .enumerate()
            .map(|(at, text)| table.cell(at, &toned(*text, Tone::Dim)))
            .collect();
        table.grid.set_header(cells);
        table
    }

    /// Adds a row.
    pub fn row(&mut self, fields: Vec<Field>) {
        let cells: Vec<Cell> = fields
            .iter()
            .enumerate()
            .map(|(at, field)| self.cell(at, field))
            .collect();
        self.grid.add_row(cells);
    }

    fn cell(&self, at: usize, (text, tone): &Field) -> Cell {
        let cell = Cell::new(text);
        let cell = if self.right.contains(&at) {
            cell.set_alignment(CellAlignment::Right)
        } else {
            cell
        };
        match tone {
            None => cell,
            Some(Tone::Good) => cell.fg(Color::DarkGreen),
            Some(Tone::Warn) => cell.fg(Color::DarkYellow),
            Some(Tone::Bad) => cell.fg(Color::DarkRed).add_attribute(Attribute::Bold),
            Some(Tone::Dim) => cell.add_attribute(Attribute::Dim),
            Some(Tone::Strong) => cell.add_attribute(Attribute::Bold),
            Some(Tone::Tag(_)) => cell.fg(Color::DarkCyan),
        }
    }

    /// The table as lines without trailing blanks, each with a newline.
    pub fn render(mut self) -> String {
        for at in 0..self.columns {
            if let Some(column) = self.grid.column_mut(at) {
                column.set_padding((0, if at + 1 < self.columns { 2 } else { 0 }));
            }
        }
        let mut text = self.grid.trim_fmt();
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_do_not_end_in_blanks() {
        let mut table = Table::new(Style::PLAIN, &["NAME", "PID", "NOTE"], &[1]);
        table.row(vec![plain("web.1"), plain("7"), plain("")]);
        table.row(vec![plain("a"), maybe(None), plain("x y")]);
        insta::assert_snapshot!(table.render(), @"
        NAME   PID  NOTE
        web.1    7
        a        -  x y
        ");
    }

    #[test]
    fn colours_only_where_wanted() {
        let mut table = Table::new(Style::COLOURED, &["A"], &[]);
        table.row(vec![toned("x", Tone::Bad)]);
        assert!(table.render().contains("\u{1b}["));
    }
}
