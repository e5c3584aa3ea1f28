//! A copy of a model's weights in the host's memory, and of which weights it is: it is taken only for the very same. Refuses to
//! know what the copy is made of.

use std::any::Any;

use ::prediction::Kept;

/// A copy of what `identity` says: all that decides its bytes.
pub struct Copy<I, C> {
    pub identity: I,
    pub copy: C,
    /// Of the host's memory.
    pub bytes: u64,
}

impl<I: 'static, C: 'static> Kept for Copy<I, C> {
    fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What was kept, if it is a copy of this; the logs hear which it was.
pub fn fitting<I: PartialEq + 'static, C: 'static>(
    kept: Option<Box<dyn Kept>>,
    identity: &I,
    report: &mut dyn FnMut(&str),
) -> Option<C> {
    let kept: Box<dyn Any> = kept?;
    match kept.downcast::<Copy<I, C>>() {
        Ok(kept) if kept.identity == *identity => {
            report(&format!("the weights come back from host memory, {} MB", kept.bytes / 1_000_000));
            Some(kept.copy)
        }
        _ => {
            report("what host memory holds is of other files or of another precision: the files are read");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_taken_for_what_it_is_of_and_for_nothing_else() {
        let mut lines = Vec::new();
        let mut taken = |identity: &str| {
            let kept = Box::new(Copy { identity: "a".to_owned(), copy: 7_u8, bytes: 2_500_000 });
            fitting::<String, u8>(Some(kept), &identity.to_owned(), &mut |line| lines.push(line.to_owned()))
        };
        assert_eq!((taken("a"), taken("b")), (Some(7), None));
        assert_eq!(fitting::<String, u8>(None, &"a".to_owned(), &mut |line| lines.push(line.to_owned())), None);
        let other = Box::new(Copy { identity: "a".to_owned(), copy: 7_u16, bytes: 0 });
        assert_eq!(fitting::<String, u8>(Some(other), &"a".to_owned(), &mut |_| ()), None, "another model's");
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with("come back from host memory, 2 MB"), "{lines:?}");
        assert!(lines[1].ends_with("the files are read"), "{lines:?}");
    }
}
