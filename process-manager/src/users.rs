//! Whom a service runs as: names and numbers of the host's user database.
//!
//! Lookups block as long as the host's name service does.

use std::ffi::CString;

use crate::shim::sys;

/// A user with everything that setting it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User number; `None` keeps the manager's.
    pub uid: Option<u32>,
    /// Group number.
    pub gid: u32,
    /// All its groups.
    pub groups: Vec<u32>,
    /// Name and home directory, when it is a known user.
    pub login: Option<(String, String)>,
}

/// Why a user or group cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The host's databases do not know it.
    #[error("no {what} {name:?} on this host")]
    Unknown {
        /// `user` or `group`.
        what: &'static str,
        /// As configured.
        name: String,
    },
    /// The databases could not be asked.
    #[error("cannot look up {what} {name:?}")]
    Lookup {
        /// `user` or `group`.
        what: &'static str,
        /// As configured.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Looks up a configured user and group; `None` when neither is configured.
/// A number that no database knows is taken as it is. Blocks.
///
/// # Errors
/// For a name that is not known.
pub fn find(user: Option<&str>, group: Option<&str>) -> Result<Option<Identity>, UserError> {
    let (uid, own_gid, login) = match user {
        None if group.is_none() => return Ok(None),
        None => (None, None, None),
        Some(name) => match lookup("user", name, sys::user)? {
            Some(user) => {
                let text = |text: &CString| text.to_string_lossy().into_owned();
                let login = (text(&user.name), text(&user.home));
                (Some(user.uid), Some(user.gid), Some((login, user.name)))
            }
            None => (Some(number("user", name)?), None, None),
        },
    };
    let gid = match group {
        Some(name) => match name.parse::<u32>() {
            Ok(number) => number,
            Err(_) => lookup("group", name, sys::group)?.ok_or_else(|| UserError::Unknown {
                what: "group",
                name: name.to_owned(),
            })?,
        },
        None => own_gid.unwrap_or_else(|| rustix::process::getgid().as_raw()),
    };
    let groups = match &login {
        Some((_, name)) => sys::groups_of(name, gid),
        None => vec![gid],
    };
    Ok(Some(Identity {
        uid,
        gid,
        groups,
        login: login.map(|(login, _)| login),
    }))
}

fn lookup<T>(
    what: &'static str,
    name: &str,
    ask: impl FnOnce(&std::ffi::CStr) -> std::io::Result<Option<T>>,
) -> Result<Option<T>, UserError> {
    let unknown = |_| UserError::Unknown {
        what,
        name: name.to_owned(),
    };
    let text = CString::new(name).map_err(unknown)?;
    ask(&text).map_err(|source| UserError::Lookup {
        what,
        name: name.to_owned(),
        source,
    })
}

fn number(what: &'static str, name: &str) -> Result<u32, UserError> {
    name.parse().map_err(|_| UserError::Unknown {
        what,
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_by_name_and_number() {
        assert_eq!(find(None, None).unwrap(), None);
        let root = find(Some("root"), None).unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (Some(0), 0));
        assert_eq!(root.login.as_ref().unwrap().0, "root");
        assert!(root.groups.contains(&0));
        assert_eq!(find(Some("0"), None).unwrap().unwrap(), root);
        let odd = find(Some("root"), Some("54321")).unwrap().unwrap();
        assert_eq!((odd.uid, odd.gid), (Some(0), 54321));
        let nobody_known = find(Some("54321"), None).unwrap().unwrap();
        assert_eq!((nobody_known.uid, nobody_known.login), (Some(54321), None));
        for (user, group) in [
            (Some("no-such-user"), None),
            (None, Some("no-such-group")),
            (Some("a\0b"), None),
        ] {
            let error = find(user, group).unwrap_err().to_string();
            assert!(error.starts_with("no "), "{error}");
        }
    }
}
