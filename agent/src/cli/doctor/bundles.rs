//! The bundles that are served without a cloud: whether they can be opened, and whether a service would see them.

use std::path::{Path, PathBuf};

use super::page::{Finding, Part};
use crate::app::local;
use crate::config::{Loaded, Place};

/// What the packages' service hides from itself: ProtectHome= the first three, PrivateTmp= the others.
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// `None` where there are none to serve.
pub(super) fn examine(paths: &[PathBuf], loaded: &Loaded) -> Option<Part> {
    (!paths.is_empty()).then(|| {
        let place = loaded.entries.iter().find(|entry| entry.key == "local").map(|entry| &entry.place);
        look(paths, !matches!(place, Some(Place::Flag(_))))
    })
}

/// `for_service`: it stands where a service reads it, not on this command line.
fn look(paths: &[PathBuf], for_service: bool) -> Part {
    let mut part = Part::new("bundles");
    for path in paths {
        let shown = path.display();
        let hint = if for_service && is_hidden(path) {
            "; a systemd service does not see what is below /home, /root, /run/user, /tmp and /var/tmp \
             (ProtectHome=, PrivateTmp=): put it below /srv, say"
        } else {
            ""
        };
        match local::open(path) {
            Ok((_, name)) => {
                part.fact(name.to_string(), Some(shown.to_string()));
                if !hint.is_empty() {
                    part.findings.push(Finding::warning(format!("{shown} can be opened from here{hint}")));
                }
            }
            Err(error) => part.findings.push(Finding::problem(format!("local: {error}{hint}"))),
        }
    }
    part
}

/// By its own name, or by what its links lead to.
fn is_hidden(path: &Path) -> bool {
    let places = [std::path::absolute(path), path.canonicalize()];
    places.iter().flatten().any(|place| HIDDEN.iter().any(|hidden| place.starts_with(hidden)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::page::Grade;

    #[test]
    fn what_run_would_fail_on_is_a_problem_and_what_a_service_does_not_see_is_told() {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../modules/samples/power-demand/2");
        let good = look(std::slice::from_ref(&sample), false);
        assert_eq!((good.facts[0].name.as_str(), good.findings), ("power-demand", vec![]));

        let missing = look(&["/srv/nothing/here".into()], true).findings;
        assert_eq!((missing.len(), missing[0].grade), (1, Grade::Problem));
        assert!(missing[0].what.contains("/srv/nothing/here") && !missing[0].what.contains("ProtectHome"));

        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let link = directory.path().join("power-demand");
        std::os::unix::fs::symlink(sample.canonicalize().unwrap(), &link).unwrap();
        let hidden = look(std::slice::from_ref(&link), true).findings;
        assert_eq!((hidden.len(), hidden[0].grade), (1, Grade::Warning));
        assert_eq!(look(&[link], false).findings, []);
        let hidden = look(&["/home/pi/gone".into()], true).findings;
        assert!(hidden[0].grade == Grade::Problem && hidden[0].what.contains("ProtectHome="));
    }
}
