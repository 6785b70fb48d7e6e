//! JSON merge patches (RFC 7396), as twins are changed by them: objects merge, all else replaces, null removes.

use serde_json::{Map, Value};

/// A JSON object.
pub type Object = Map<String, Value>;

/// Changes `target` as `patch` says.
pub fn apply(target: &mut Object, patch: &Object) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(patch) => {
                let mut inner = take_object(target, key);
                apply(&mut inner, patch);
                target.insert(key.clone(), inner.into());
            }
            value => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Changes `target` as `patch` says but removes nothing: everything that may be there when it is not known whether
/// the patch was applied.
pub fn apply_without_removing(target: &mut Object, patch: &Object) {
    for (key, value) in patch {
        match value {
            Value::Null => {}
            Value::Object(patch) => {
                let mut inner = take_object(target, key);
                apply_without_removing(&mut inner, patch);
                target.insert(key.clone(), inner.into());
            }
            // Of an object, the keys may be there still.
            _ if target.get(key).is_some_and(Value::is_object) => {}
            value => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

/// The smallest patch that makes `to` of `from`; arrays stand in it whole. `to` holds no null.
pub fn difference(from: &Object, to: &Object) -> Object {
    let mut patch = removals(from, to);
    for (key, wanted) in to {
        match (from.get(key), wanted) {
            (Some(given), wanted) if given == wanted => {}
            (Some(Value::Object(given)), Value::Object(wanted)) => {
                patch.insert(key.clone(), difference(given, wanted).into());
            }
            (_, wanted) => {
                patch.insert(key.clone(), wanted.clone());
            }
        }
    }
    patch
}

/// The patch that makes `to` of `from` even where `from` is not what is there: says all of `to` and removes what only
/// `from` has. `to` holds no null.
pub fn restatement(from: &Object, to: &Object) -> Object {
    let mut patch = removals(from, to);
    for (key, wanted) in to {
        let stated = match (from.get(key), wanted) {
            (Some(Value::Object(given)), Value::Object(wanted)) => restatement(given, wanted).into(),
            (_, wanted) => wanted.clone(),
        };
        patch.insert(key.clone(), stated);
    }
    patch
}

/// The patch that only removes what `from` has and `to` has not, at any depth.
pub fn removal(from: &Object, to: &Object) -> Object {
    let mut patch = removals(from, to);
    for (key, wanted) in to {
        if let (Some(Value::Object(given)), Value::Object(wanted)) = (from.get(key), wanted) {
            let inner = removal(given, wanted);
            if !inner.is_empty() {
                patch.insert(key.clone(), inner.into());
            }
        }
    }
    patch
}

fn removals(from: &Object, to: &Object) -> Object {
    from.keys().filter(|key| !to.contains_key(*key)).map(|key| (key.clone(), Value::Null)).collect()
}

/// The object at `key`; an empty one in place of whatever else is there.
fn take_object(target: &mut Object, key: &str) -> Object {
    match target.remove(key) {
        Some(Value::Object(object)) => object,
        _ => Object::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Object {
        let Value::Object(object) = value else { panic!("{value}") };
        object
    }

    fn documents() -> impl Strategy<Value = Object> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0..3).prop_map(Value::from),
            prop::collection::vec(0..3, 0..3).prop_map(Value::from),
        ];
        let key = || "[a-d]";
        let value = leaf.prop_recursive(3, 16, 4, move |inner| {
            prop::collection::btree_map(key(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        });
        prop::collection::btree_map(key(), value, 0..4).prop_map(|map| map.into_iter().collect())
    }

    #[test]
    fn a_patch_merges_replaces_and_removes() {
        let mut target = object(json!({"a": {"b": 1, "c": [1, 2]}, "d": 1, "e": "x"}));
        apply(
            &mut target,
            &object(json!({"a": {"b": null, "c": [3], "n": {"m": null}}, "d": {"f": 1}, "g": null})),
        );
        assert_eq!(target, object(json!({"a": {"c": [3], "n": {}}, "d": {"f": 1}, "e": "x"})));
    }

    #[test]
    fn a_difference_is_small_and_a_restatement_whole() {
        let from = object(json!({"models": {"a": {"v": 1, "why": "x"}, "b": 1}, "agent": {"v": 1}}));
        let to = object(json!({"models": {"a": {"v": 2}}, "agent": {"v": 1}}));
        assert_eq!(
            difference(&from, &to),
            object(json!({"models": {"a": {"v": 2, "why": null}, "b": null}}))
        );
        assert_eq!(
            restatement(&from, &to),
            object(json!({"models": {"a": {"v": 2, "why": null}, "b": null}, "agent": {"v": 1}}))
        );
        assert_eq!(removal(&from, &to), object(json!({"models": {"a": {"why": null}, "b": null}})));
    }

    proptest! {
        #[test]
        fn patches_lead_from_any_document_to_any_other(from in documents(), to in documents()) {
            for patch in [difference(&from, &to), restatement(&from, &to)] {
                let mut target = from.clone();
                apply(&mut target, &patch);
                prop_assert_eq!(&target, &to);
            }
            prop_assert!(difference(&to, &to).is_empty());
        }

        #[test]
        fn a_restatement_holds_whether_or_not_the_patch_before_it_was_applied(
            known in documents(), lost in documents(), to in documents(), applied: bool,
        ) {
            let patch = difference(&known, &lost);
            let mut there = known.clone();
            if applied {
                apply(&mut there, &patch);
            }
            let mut may_be_there = known;
            apply_without_removing(&mut may_be_there, &patch);
            apply(&mut there, &restatement(&may_be_there, &to));
            prop_assert_eq!(there, to);
        }
    }
}
