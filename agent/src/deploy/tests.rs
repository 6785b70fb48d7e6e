//! The state machine, walked by hand and at random.

use proptest::prelude::*;

use super::*;

fn target(version: u64) -> Target {
    let digest = Digest::of(&version.to_le_bytes());
    let (size, source, settings) = (Some(10), Source::Registry, ModelSettings::default());
    Target { version, digest, size, source, settings, deployment: version }
}

fn walk(mut state: Deployment, events: Vec<Event>) -> (Deployment, Vec<Effect>) {
    let mut effects = Vec::new();
    for event in events {
        let (next, more) = step(state, event);
        state = next;
        effects = more;
    }
    (state, effects)
}

fn digest(version: u64) -> Digest {
    target(version).digest
}

/// A model whose version serves, after `before` where that is given.
fn serving(version: u64, before: Option<u64>) -> Deployment {
    let (mut state, _) = Deployment::new(target(before.unwrap_or(version)));
    for version in before.into_iter().chain([version]) {
        let events = vec![
            Event::Desired(target(version)),
            Event::Fetched(digest(version)),
            Event::Verified(digest(version)),
            Event::ProofTurn(digest(version)),
            Event::Proved(digest(version)),
        ];
        state = walk(state, events).0;
    }
    state
}

#[test]
fn a_version_goes_live_by_way_of_its_proof() {
    let (state, effects) = Deployment::new(target(1));
    assert_eq!(effects, [Effect::Fetch(target(1))]);
    let (state, effects) = step(state, Event::Fetched(digest(1)));
    assert_eq!((state.phase, &effects[..]), (Phase::Verifying, &[Effect::Verify(target(1))][..]));
    let (state, effects) = step(state, Event::Verified(digest(1)));
    assert_eq!((state.phase, &effects[..]), (Phase::Verifying, &[Effect::AwaitProof(target(1))][..]));
    let (state, effects) = step(state, Event::ProofTurn(digest(1)));
    assert_eq!((state.phase, &effects[..]), (Phase::Proving, &[Effect::Prove(target(1))][..]));
    let (state, effects) = step(state, Event::Proved(digest(1)));
    assert_eq!(effects, [Effect::Swap(target(1)), Effect::Collect]);
    assert_eq!((state.phase, state.active), (Phase::Active, Some(target(1))));
}

#[test]
fn the_version_before_is_kept_and_can_be_had_back() {
    let state = serving(2, Some(1));
    assert_eq!(state.previous, Some(target(1)));
    let (state, effects) = step(state, Event::Rollback);
    assert_eq!(effects, [Effect::Abandon, Effect::AwaitRestore(target(1)), Effect::Collect]);
    assert_eq!(
        (state.phase, &state.active, &state.previous),
        (Phase::RolledBack, &Some(target(1)), &Some(target(2)))
    );
    let (state, effects) = step(state, Event::Desired(target(2)));
    assert!(effects.is_empty(), "the same wish again does not bring the version back");
    let again = Target { deployment: 9, ..target(2) };
    assert_eq!(
        step(state, Event::Desired(again.clone())).1,
        [Effect::Abandon, Effect::Fetch(again)],
        "a new one does"
    );
    assert!(step(serving(1, None), Event::Rollback).1.is_empty(), "there is nothing to roll back to");
}

#[test]
fn a_version_that_was_rolled_back_stays_so_when_only_its_source_moves() {
    let state = step(serving(2, Some(1)), Event::Rollback).0;
    let elsewhere = Target { source: "https://host/x.bundle?sig=2".parse().unwrap(), ..target(2) };
    let (state, effects) = step(state, Event::Desired(elsewhere.clone()));
    assert!(effects.is_empty());
    assert_eq!((state.phase, &state.target), (Phase::RolledBack, &elsewhere));
    let again = Target { deployment: 3, ..elsewhere };
    assert_eq!(step(state, Event::Desired(again)).0.phase, Phase::Fetching);
}

#[test]
fn a_rollback_that_fails_goes_back_to_what_served() {
    let state = step(serving(2, Some(1)), Event::Rollback).0;
    let (state, effects) = step(state, Event::RestoreFailed(digest(1), "no memory".into()));
    assert_eq!(effects, [Effect::AwaitRestore(target(2)), Effect::Collect]);
    assert_eq!((state.phase, state.active), (Phase::Active, Some(target(2))));
}

#[test]
fn a_rejected_version_is_tried_again_when_it_is_deployed_again() {
    let events = vec![
        Event::Fetched(digest(1)),
        Event::Verified(digest(1)),
        Event::ProofTurn(digest(1)),
        Event::ProofFailed(digest(1), "no".into()),
    ];
    let state = walk(Deployment::new(target(1)).0, events).0;
    assert!(step(state.clone(), Event::Desired(target(1))).1.is_empty());
    let again = Target { deployment: 2, ..target(1) };
    let (state, effects) = step(state, Event::Desired(again.clone()));
    assert_eq!((state.phase, &effects[..]), (Phase::Fetching, &[Effect::Abandon, Effect::Fetch(again)][..]));
}

#[test]
fn a_version_that_serves_is_not_loaded_again_when_its_bytes_lie_elsewhere() {
    let source: Source = "file:///models/x.bundle".parse().unwrap();
    let moved = Target { source, size: None, ..target(1) };
    let (state, effects) = step(serving(1, None), Event::Desired(moved.clone()));
    assert_eq!(effects, [Effect::Abandon, Effect::Collect]);
    assert_eq!((state.phase, &state.active, &state.target), (Phase::Active, &Some(moved.clone()), &moved));

    let (fetching, _) = Deployment::new(target(2));
    let elsewhere = Target { source: moved.source, ..target(2) };
    let (_, effects) = step(fetching, Event::Desired(elsewhere.clone()));
    assert_eq!(
        effects,
        [Effect::Abandon, Effect::Fetch(elsewhere)],
        "what is still to come is pulled from there"
    );
}

#[test]
fn an_orderly_stop_is_no_crash() {
    let events = vec![
        Event::Fetched(digest(1)),
        Event::Verified(digest(1)),
        Event::ProofTurn(digest(1)),
        Event::Stopping,
    ];
    let state = walk(Deployment::new(target(1)).0, events).0;
    assert_eq!(step(state, Event::Restarted).1, [Effect::Verify(target(1))]);

    let mut state = serving(1, None);
    for _ in 0..2 * MAX_RESTORES {
        let (next, effects) = walk(state, vec![Event::Stopping, Event::Restarted]);
        assert_eq!(effects, [Effect::AwaitRestore(target(1))]);
        state = step(next, Event::RestoreTurn(digest(1))).0;
    }
}

#[test]
fn a_model_does_not_pay_for_its_neighbour() {
    let mut state = serving(1, None);
    for _ in 0..2 * MAX_RESTORES {
        let (next, effects) = step(state, Event::Restarted);
        assert_eq!(effects, [Effect::AwaitRestore(target(1))], "its turn never came");
        state = next;
    }
}

#[test]
fn a_disk_that_does_not_answer_rejects_nothing() {
    let events = vec![Event::Fetched(digest(1)), Event::Stalled(digest(1), "input/output error".into())];
    let (state, effects) = walk(Deployment::new(target(1)).0, events);
    assert_eq!((state.phase, &effects[..]), (Phase::Verifying, &[Effect::Verify(target(1))][..]));
    let (state, effects) =
        step(serving(1, None), Event::RestoreStalled(digest(1), "input/output error".into()));
    assert_eq!(effects, [Effect::AwaitRestore(target(1))]);
    assert_eq!(state.active, Some(target(1)));
}

#[test]
fn a_failed_proof_leaves_the_serving_version_alone() {
    let state = serving(1, None);
    let events = vec![
        Event::Desired(target(2)),
        Event::Fetched(digest(2)),
        Event::Verified(digest(2)),
        Event::ProofTurn(digest(2)),
        Event::ProofFailed(digest(2), "golden sample 0".into()),
    ];
    let (state, effects) = walk(state, events);
    assert_eq!(effects, [Effect::Collect]);
    assert_eq!((state.phase, state.active.clone()), (Phase::Rejected, Some(target(1))));
    assert!(!state.kept().any(|kept| kept == digest(2)), "its bytes are not kept");
    let (state, _) = step(state, Event::Restarted);
    assert_eq!(state.phase, Phase::Rejected, "and it is not tried again");
}

#[test]
fn a_death_while_proving_rejects_the_version() {
    let state = serving(1, None);
    let events = vec![
        Event::Desired(target(2)),
        Event::Fetched(digest(2)),
        Event::Verified(digest(2)),
        Event::ProofTurn(digest(2)),
    ];
    let (state, effects) = walk(walk(state, events).0, vec![Event::Restarted]);
    assert_eq!(effects, [Effect::AwaitRestore(target(1)), Effect::Collect]);
    assert_eq!(state.phase, Phase::Rejected);
    assert!(state.why.unwrap().contains("died"));
}

#[test]
fn a_restart_resumes_where_it_was() {
    let (state, _) = Deployment::new(target(1));
    let (state, effects) = step(state, Event::Restarted);
    assert_eq!(effects, [Effect::Fetch(target(1))]);
    let (state, _) = step(state, Event::Fetched(digest(1)));
    assert_eq!(step(state, Event::Restarted).1, [Effect::Verify(target(1))]);
}

#[test]
fn a_serving_version_that_kills_the_agent_is_given_up() {
    let mut state = serving(2, Some(1));
    for _ in 0..MAX_RESTORES {
        let (next, effects) = step(state, Event::Restarted);
        assert_eq!(effects, [Effect::AwaitRestore(target(2))]);
        let (next, effects) = step(next, Event::RestoreTurn(digest(2)));
        assert_eq!(effects, [Effect::Restore(target(2))]);
        state = next;
    }
    let (state, effects) = step(state, Event::Restarted);
    assert_eq!(effects, [Effect::AwaitRestore(target(1)), Effect::Collect]);
    assert_eq!((state.phase, state.active), (Phase::RolledBack, Some(target(1))));
}

#[test]
fn damaged_bytes_of_the_serving_version_are_pulled_anew() {
    let (state, effects) = step(serving(1, None), Event::RestoreIncomplete(digest(1)));
    assert_eq!(effects, [Effect::Unload, Effect::Fetch(target(1))]);
    assert_eq!(state.phase, Phase::Fetching);
}

#[test]
fn late_answers_for_another_target_are_ignored() {
    let (state, _) = Deployment::new(target(1));
    let (state, _) = step(state, Event::Desired(target(2)));
    let (after, effects) = step(state.clone(), Event::Fetched(digest(1)));
    assert_eq!((after, effects), (state, vec![]));
}

#[test]
fn going_back_to_the_serving_version_needs_no_proof() {
    let state = walk(serving(1, None), vec![Event::Desired(target(2))]).0;
    let (state, effects) = step(state, Event::Desired(target(1)));
    assert_eq!(effects, [Effect::Abandon, Effect::Collect]);
    assert_eq!(state.phase, Phase::Active);
}

fn any_event() -> impl Strategy<Value = Event> {
    let version = 1..4u64;
    prop_oneof![
        version.clone().prop_map(|v| Event::Desired(target(v))),
        version.clone().prop_map(|v| Event::Fetched(digest(v))),
        version.clone().prop_map(|v| Event::FetchRefused(digest(v), "no".into())),
        version.clone().prop_map(|v| Event::Verified(digest(v))),
        version.clone().prop_map(|v| Event::Incomplete(digest(v))),
        version.clone().prop_map(|v| Event::Unusable(digest(v), "no".into())),
        version.clone().prop_map(|v| Event::Proved(digest(v))),
        version.clone().prop_map(|v| Event::ProofFailed(digest(v), "no".into())),
        version.clone().prop_map(|v| Event::Stalled(digest(v), "later".into())),
        version.clone().prop_map(|v| Event::ProofTurn(digest(v))),
        version.clone().prop_map(|v| Event::RestoreTurn(digest(v))),
        version.clone().prop_map(|v| Event::RestoreStalled(digest(v), "later".into())),
        version.clone().prop_map(|v| Event::Restored(digest(v))),
        version.clone().prop_map(|v| Event::RestoreFailed(digest(v), "no".into())),
        version.prop_map(|v| Event::RestoreIncomplete(digest(v))),
        Just(Event::Restarted),
        Just(Event::Rollback),
        Just(Event::Stopping),
    ]
}

proptest! {
    /// Whatever happens, in whatever order: nothing serves that was not proven, what may be needed is kept, and
    /// a phase is never without the effect that leads out of it.
    #[test]
    fn invariants_hold_on_every_path(events in prop::collection::vec(any_event(), 0..60)) {
        let (mut state, _) = Deployment::new(target(1));
        let mut proven = std::collections::HashSet::new();
        for event in events {
            let before = state.clone();
            let (next, effects) = step(state, event.clone());
            if let Event::Proved(digest) = &event && before.phase == Phase::Proving && before.target.digest == *digest {
                proven.insert(*digest);
            }
            for effect in &effects {
                match effect {
                    Effect::Swap(t) | Effect::Restore(t) | Effect::AwaitRestore(t) => prop_assert!(proven.contains(&t.digest)),
                    _ => {}
                }
            }
            for serving in next.active.iter().chain(&next.previous) {
                prop_assert!(proven.contains(&serving.digest));
                prop_assert!(next.kept().any(|kept| kept == serving.digest));
            }
            let entered = |phase| next.phase == phase && before.phase != phase;
            if entered(Phase::Fetching) {
                prop_assert!(effects.contains(&Effect::Fetch(next.target.clone())));
            }
            if entered(Phase::Verifying) && event != Event::Stopping {
                prop_assert!(effects.contains(&Effect::Verify(next.target.clone())));
            }
            if entered(Phase::Proving) {
                prop_assert!(effects.contains(&Effect::Prove(next.target.clone())));
            }
            if entered(Phase::Rejected) || entered(Phase::RolledBack) {
                prop_assert!(next.why.is_some());
            }
            state = next;
        }
    }
}
