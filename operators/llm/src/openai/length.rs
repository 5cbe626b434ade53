//! How long a text surely is.

/// Letters and digits that a token of a text stands for at most, on average. In today's vocabularies it is under four in prose
/// of any language.
const LETTERS_A_TOKEN: u64 = 8;

/// Tokens that `text` has at least, in any vocabulary: one for each word, since no token goes on over white space into the next
/// word, or one for [`LETTERS_A_TOKEN`] where words are longer or aren't set apart. Prose has about a third more.
pub(super) fn least_tokens(text: &str) -> u64 {
    let (mut words, mut letters) = (0_u64, 0_u64);
    for word in text.split_whitespace() {
        words += 1;
        letters += word.chars().filter(|c| c.is_alphanumeric()).count() as u64;
    }
    letters.div_ceil(LETTERS_A_TOKEN).max(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_for_each_word_or_for_eight_letters() {
        assert_eq!(least_tokens(""), 0);
        assert_eq!(least_tokens("The mill\n\n  grinds rye."), 4);
        assert_eq!(least_tokens(&" ".repeat(1000)), 0, "a table that is wide isn't long");
        assert_eq!(least_tokens(&"x".repeat(17)), 3);
        assert_eq!(least_tokens(&"水".repeat(80)), 10, "letters are counted, not bytes");
        assert_eq!(least_tokens(&"-".repeat(80)), 1);
    }
}
