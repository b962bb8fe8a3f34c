//! Rows under headings, as wide as they have to be.

/// The widest cell; what is longer is cut off: `-o json` has it whole.
const MAX_CELL: usize = 40;

/// Lines with columns under each other; the last column ends where it ends.
pub(crate) fn table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Vec<String> {
    let mut all = vec![headings.map(str::to_owned)];
    all.extend(rows.into_iter().map(|row| row.map(|cell| cut(&cell))));
    let widths: Vec<usize> = (0..N)
        .map(|column| all.iter().map(|row| width(&row[column])).max().unwrap_or(0))
        .collect();
    all.iter()
        .map(|row| {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                line.push_str(cell);
                if column + 1 < N {
                    line.extend(std::iter::repeat_n(' ', widths[column] - width(cell) + 2));
                }
            }
            line.trim_end().to_owned()
        })
        .collect()
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn cut(cell: &str) -> String {
    if width(cell) <= MAX_CELL {
        return cell.to_owned();
    }
    cell.chars()
        .take(MAX_CELL - 1)
        .chain(['\u{2026}'])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other_and_what_is_long_is_cut() {
        let lines = table(
            ["NODE", "WHY"],
            [
                ["a".to_owned(), "up".to_owned()],
                ["größe-1".to_owned(), "x".repeat(50)],
            ],
        );
        assert_eq!(lines[0], "NODE     WHY");
        assert_eq!(lines[1], "a        up");
        assert_eq!(lines[2], format!("größe-1  {}\u{2026}", "x".repeat(39)));
    }
}
