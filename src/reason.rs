//! Reasons that operators give: one line that says something, checked before anything is asked.

/// As the CA takes them.
const MAX: usize = 512;

/// Reads the value of `--reason`.
pub fn read(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("say why: it is what the audit log will know; nothing was changed".to_owned());
    }
    if text.len() > MAX || text.chars().any(char::is_control) {
        return Err(format!(
            "one line of at most {MAX} bytes; nothing was changed"
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_says_something_on_one_line() {
        assert_eq!(read("key leaked").unwrap(), "key leaked");
        for bad in ["", "  ", "\t", "two\nlines", &"x".repeat(MAX + 1)] {
            assert!(read(bad).unwrap_err().contains("nothing was changed"));
        }
    }
}
