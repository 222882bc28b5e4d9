//! An image's `User` → numbers, by the image's own /etc/passwd and /etc/group; pure.
//!
//! The files are hostile: a line counts if it is one, and nothing of it but numbers and an absolute path is taken.

use crate::restore::Error;
use crate::restore::spec::User;

/// The user that `user` means: `NAME|UID[:GROUP|GID]`; root if it is empty.
pub(super) fn find(user: &str, passwd: &[u8], group: &[u8]) -> Result<User, Error> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let entry = lines(passwd).find(|fields| match number {
        Some(number) => numbered(fields, 2) == Some(number),
        None => fields.first() == Some(&user),
    });
    let none = |what: &str, name: &str| Error::Malformed(format!("its User is the {what} {name:?}, which it has not"));
    let uid = number.or_else(|| numbered(entry.as_deref()?, 2)).ok_or_else(|| none("user", user))?;
    let home = entry.as_ref().and_then(|fields| fields.get(5)).filter(|home| home.starts_with('/'));
    let name = entry.as_ref().and_then(|fields| fields.first()).copied().unwrap_or_default();
    let (gid, groups) = match wanted_group {
        Some(group_name) => {
            let by_name =
                || lines(group).find(|fields| fields.first() == Some(&group_name)).and_then(|f| numbered(&f, 2));
            let gid = group_name.parse().ok().or_else(by_name).ok_or_else(|| none("group", group_name))?;
            (gid, Vec::new())
        }
        None => {
            let gid = entry.as_ref().and_then(|fields| numbered(fields, 3)).unwrap_or(0);
            let is_member = |fields: &[&str]| fields.get(3).is_some_and(|list| list.split(',').any(|one| one == name));
            let others = lines(group).filter(|fields| !name.is_empty() && is_member(fields));
            (
                gid,
                others
                    .filter_map(|fields| numbered(&fields, 2))
                    .filter(|other| *other != gid)
                    .take(MOST_GROUPS)
                    .collect(),
            )
        }
    };
    Ok(User { uid, gid, groups, home: home.map(|home| (*home).to_owned()) })
}

/// More groups than the kernel takes are not looked for.
const MOST_GROUPS: usize = 1024;

fn lines(text: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    let lines = text.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    lines.filter(|line| !line.chars().any(char::is_control)).map(|line| line.split(':').collect())
}

fn numbered(fields: &[&str], at: usize) -> Option<u32> {
    fields.get(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:44:w:/var/www:/bin/sh\nodd\nbad:x:y:z\n\xff:x:1:1\n";
    const GROUP: &[u8] = b"root:x:0:\nstaff:x:50:web,other\nwww:x:44:web\n";

    fn find(user: &str) -> (u32, u32, Vec<u32>, Option<String>) {
        let User { uid, gid, groups, home } = super::find(user, PASSWD, GROUP).unwrap();
        (uid, gid, groups, home)
    }

    #[test]
    fn names_and_numbers_are_found_in_the_image() {
        let www = Some("/var/www".to_owned());
        assert_eq!(find(""), (0, 0, vec![], Some("/root".to_owned())));
        assert_eq!(find("web"), (33, 44, vec![50], www.clone()));
        assert_eq!(find("33"), (33, 44, vec![50], www.clone()));
        assert_eq!(find("web:staff"), (33, 50, vec![], www.clone()));
        assert_eq!(find("web:7"), (33, 7, vec![], www));
        assert_eq!(find("4711"), (4711, 0, vec![], None));
        for user in ["nobody", "bad", "web:none", "-1", "4294967296"] {
            assert!(super::find(user, PASSWD, GROUP).is_err(), "{user}");
        }
    }
}
