//! Tables for people.

use super::out;

/// Prints rows under a header; columns from `right` on are aligned to the
/// right. Nothing if there are no rows.
pub(super) fn print(header: &[&str], right: usize, rows: &[Vec<String>]) {
    if !rows.is_empty() {
        out::print(format_args!("{}", render(header, right, rows)));
    }
}

fn render(header: &[&str], right: usize, rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .chain([header[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let header: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&header).chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| match column < right {
                true => format!("{cell:<width$}"),
                false => format!("{cell:>width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["数据".to_owned(), "1.0 GiB".to_owned()],
            vec!["a-long-name".to_owned(), "0 B".to_owned()],
        ];
        let text = render(&["NAME", "SIZE"], 1, &rows);
        assert_eq!(
            text,
            "NAME            SIZE\n数据           1.0 GiB\na-long-name      0 B\n"
        );
    }
}
