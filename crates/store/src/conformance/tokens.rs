//! API tokens and signing secrets.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Handles;
use crate::StoreError;

pub async fn a_token_is_known_until_it_is_revoked(handles: Handles) {
    assert_eq!(handles.one.token_list().await.unwrap(), vec![]);
    let token = handles.one.token_create("laptop").await.unwrap();
    let other = handles.one.token_create("server").await.unwrap();
    assert!(token.starts_with("r8_") && token.len() == 40, "{token}");
    assert!(handles.two.token_check(&token).await.unwrap() && handles.two.token_check(&other).await.unwrap());
    for wrong in ["", "r8_", &token[..39], &token.to_uppercase()] {
        assert!(!handles.two.token_check(wrong).await.unwrap(), "{wrong:?}");
    }
    let listed = handles.two.token_list().await.unwrap();
    assert_eq!(listed.iter().map(|token| token.name.as_str()).collect::<Vec<_>>(), ["laptop", "server"]);
    assert_eq!((listed[0].last_four.as_str(), listed[0].created_at), (&token[36..], handles.clock.now()));
    assert!(handles.two.token_revoke("laptop").await.unwrap());
    assert!(!handles.two.token_revoke("laptop").await.unwrap() && !handles.two.token_revoke("nobody").await.unwrap());
    assert!(!handles.one.token_check(&token).await.unwrap() && handles.one.token_check(&other).await.unwrap());
    let revoked: Vec<_> = handles.one.token_list().await.unwrap().iter().map(|token| token.revoked).collect();
    assert_eq!(revoked, [true, false]);
}

pub async fn a_token_name_is_used_once_at_a_time(handles: Handles) {
    let first = handles.one.token_create("laptop").await.unwrap();
    let refused = handles.two.token_create("laptop").await.unwrap_err();
    assert_eq!(refused, StoreError::Exists("token \"laptop\"".into()));
    handles.one.token_revoke("laptop").await.unwrap();
    let second = handles.two.token_create("laptop").await.unwrap();
    assert!(!handles.one.token_check(&first).await.unwrap() && handles.one.token_check(&second).await.unwrap());
}

pub async fn a_secret_is_made_once_whoever_asks_first(handles: Handles) {
    let (one, two) = tokio::join!(handles.one.secret("webhook"), handles.two.secret("webhook"));
    let secret = one.unwrap();
    assert_eq!(two.unwrap(), secret);
    assert_eq!(handles.two.secret("webhook").await.unwrap(), secret);
    let key = secret.strip_prefix("whsec_").unwrap();
    assert_eq!(STANDARD.decode(key).unwrap().len(), 24);
    assert_eq!(secret.split('_').count(), 2, "two clients split here");
    assert_ne!(handles.one.secret("files").await.unwrap(), secret);
}
