//! A tokenizer rebuilt from the tokens, scores and merges that a GGUF file carries. Three families: byte-level BPE with
//! GPT-2's, SmolLM's or Llama 3's way of cutting words, and SentencePiece (Llama 2, TinyLlama).

use prediction::PredictError;
use runner::Gguf;
use runner::gguf::{Strings, Value};
use tokenizers::models::bpe::{BPE, BpeBuilder, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::tokenizer::{BLANK, Spelling, Tokenizer, Words};

pub(super) const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Kinds of tokens, as `tokenizer.ggml.token_type` numbers them.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// End tokens by their usual names: files often name one and their models use another as well.
const END_WORDS: [&str; 5] = ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"];

impl Tokenizer {
    pub fn from_gguf(file: &Gguf) -> Result<(Self, Words), PredictError> {
        let tokens = file.strings("tokenizer.ggml.tokens")?;
        let kinds = if file.get("tokenizer.ggml.token_type").is_some() {
            file.integers("tokenizer.ggml.token_type")?
        } else {
            vec![1; tokens.len()]
        };
        let flag = |name: &str| file.get(&format!("tokenizer.ggml.{name}")).and_then(Value::as_bool);
        let id = |name: &str| {
            let id = file.get(&format!("tokenizer.ggml.{name}_token_id"))?.as_u64()?;
            u32::try_from(id).ok().filter(|&id| (id as usize) < tokens.len())
        };
        let (mut inner, spelling, usually_bos) = match file.str("tokenizer.ggml.model")? {
            "gpt2" => byte_level(file, tokens)?,
            "llama" => {
                let prefix = flag("add_space_prefix").unwrap_or(true);
                sentence_piece(file, tokens, &kinds, id("unknown"), prefix)?
            }
            other => return Err(refuse(format!("tokenizer.ggml.model is \"{other}\"; gpt2 and llama are read"))),
        };
        let of_kind = |kind: i64| {
            let numbered = kinds.iter().zip(0u32..).filter(move |&(&k, _)| k == kind);
            numbered.map(|(_, id)| id).filter(|&id| (id as usize) < tokens.len())
        };
        let text = |id: u32| tokens.get(id as usize).unwrap_or_default();
        let added = |special: bool| move |id| AddedToken::from(text(id), special).normalized(false);
        inner.add_special_tokens(of_kind(CONTROL).map(added(true))).map_err(failed)?;
        inner.add_tokens(of_kind(USER_DEFINED).map(added(false))).map_err(failed)?;
        let bos = id("bos").filter(|_| flag("add_bos_token").unwrap_or(usually_bos));
        let word = |name: &str| id(name).map(text).unwrap_or_default().to_owned();
        let template = file.get("tokenizer.chat_template").and_then(Value::as_str);
        let words = Words { chat_template: template.map(str::to_owned), bos: word("bos"), eos: word("eos") };
        let special = of_kind(CONTROL).chain(of_kind(UNKNOWN)).collect();
        let longest_bytes = tokens.iter().map(str::len).max().unwrap_or(1);
        Ok((Self { inner, spelling, special, bos, longest_bytes }, words))
    }

    /// Special tokens that end a text by their name.
    pub fn usual_ends(&self) -> impl Iterator<Item = u32> {
        END_WORDS.iter().filter_map(|word| self.special(word))
    }
}

fn refuse(why: String) -> PredictError {
    PredictError::Operator(why)
}

fn failed(error: tokenizers::Error) -> PredictError {
    refuse(format!("the tokenizer in the file cannot be built: {error}"))
}

fn vocabulary(tokens: Strings) -> Vocab {
    tokens.iter().zip(0u32..).map(|(token, id)| (token.to_owned(), id)).collect()
}

type Built = (tokenizers::Tokenizer, Spelling, bool);

fn byte_level(file: &Gguf, tokens: Strings) -> Result<Built, PredictError> {
    let bytes = |use_regex: bool| PreTokenizerWrapper::from(ByteLevel::new(false, true, use_regex));
    // (cuts words, takes whole words from the vocabulary before merging, has a first token)
    let (words, whole_words, bos): (Vec<PreTokenizerWrapper>, bool, bool) =
        match file.get("tokenizer.ggml.pre").and_then(Value::as_str).unwrap_or("default") {
            "smollm" => (vec![Digits::new(true).into(), bytes(true)], false, false),
            "default" | "gpt-2" | "gpt2" => (vec![bytes(true)], false, false),
            "llama-bpe" | "llama3" | "llama-v3" => {
                let pattern = SplitPattern::Regex(LLAMA3_WORDS.into());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(failed)?;
                (vec![split.into(), bytes(false)], true, true)
            }
            other => {
                let known = "smollm, gpt-2, default and llama-bpe are read";
                return Err(refuse(format!("tokenizer.ggml.pre is \"{other}\"; {known}")));
            }
        };
    let merges = file.strings("tokenizer.ggml.merges")?;
    let pairs = merges.iter().map(|merge| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => Err(refuse(format!("tokenizer.ggml.merges: \"{merge}\" is not a pair"))),
    });
    let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
    let bpe = BpeBuilder::new().vocab_and_merges(vocabulary(tokens), pairs).ignore_merges(whole_words);
    let mut inner = tokenizers::Tokenizer::new(bpe.build().map_err(failed)?);
    inner.with_pre_tokenizer(Some(Sequence::new(words)));
    Ok((inner, Spelling::ByteLevel, bos))
}

/// SentencePiece joins the neighbours whose joint piece scores best: the same as BPE whose merges are all the ways to
/// make each piece from two others, in the order of the pieces' scores.
fn sentence_piece(
    file: &Gguf,
    tokens: Strings,
    kinds: &[i64],
    unknown: Option<u32>,
    prefix: bool,
) -> Result<Built, PredictError> {
    const NORMAL: i64 = 1;
    let scores = file.floats("tokenizer.ggml.scores")?;
    let vocab = vocabulary(tokens);
    let normal = |piece: &str| vocab.get(piece).is_some_and(|&id| kinds.get(id as usize) == Some(&NORMAL));
    let mut merges: Vec<(f32, &str, &str)> = Vec::new();
    for (piece, id) in tokens.iter().zip(0usize..).filter(|&(_, id)| kinds.get(id) == Some(&NORMAL)) {
        let score = scores.get(id).copied().unwrap_or(f32::NEG_INFINITY);
        let splits = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        merges.extend(splits.filter(|(l, r)| normal(l) && normal(r)).map(|(l, r)| (score, l, r)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.len().cmp(&a.1.len())));
    let merges = merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect();
    let mut builder = BpeBuilder::new().vocab_and_merges(vocab, merges).byte_fallback(true).fuse_unk(true);
    if let Some(word) = unknown.and_then(|id| tokens.get(id as usize)) {
        builder = builder.unk_token(word.to_owned());
    }
    let bpe: BPE = builder.build().map_err(failed)?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    let blanks = Replace::new(" ", BLANK.to_string()).map_err(failed)?;
    let mut steps: Vec<NormalizerWrapper> = vec![blanks.into()];
    if prefix {
        steps.insert(0, Prepend::new(BLANK.to_string()).into());
    }
    inner.with_normalizer(Some(Normalizers::new(steps))).map_err(failed)?;
    Ok((inner, Spelling::Pieces { strip: prefix }, true))
}
