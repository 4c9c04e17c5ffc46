//! LRO off where packets are translated: a NIC that merges segments leaves packets that cannot be sent on as
//! they are, which is why the kernel switches it off for its own forwarding (`dev_disable_lro`). What was
//! switched off is written down first, so that whoever takes the programs away can put it back.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const FILE: &str = "lro.json";

/// Devices by name, with their numbers: one that was made anew is another one.
pub(crate) type Devices = BTreeMap<String, u32>;

/// What could not be done, by the device's name.
pub(crate) type Failures = BTreeMap<String, String>;

/// Whether a device merges what it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lro {
    /// It does not.
    #[default]
    Off,
    /// It does, and can be told not to.
    On,
    /// It does, whatever it is told.
    Fixed,
}

impl Lro {
    /// By what a device does, and what of that can be changed.
    pub(crate) fn of(is_on: bool, is_changeable: bool) -> Self {
        match (is_on, is_changeable) {
            (false, _) => Self::Off,
            (true, true) => Self::On,
            (true, false) => Self::Fixed,
        }
    }
}

/// Puts LRO back wherever it was switched off. Says what was done, and what could not be, by the device's name.
pub fn put_back(state_dir: &Path) -> (Vec<String>, BTreeMap<String, String>) {
    Switched::new(state_dir, Ethtool).keep_off(&Devices::new())
}

/// The switch of each device; tests have others than the kernel's.
pub(crate) trait Switch {
    fn is_on(&self, device: &str) -> io::Result<bool>;
    fn set(&self, device: &str, on: bool) -> io::Result<()>;
    /// Its number; nothing where there is no such device.
    fn index(&self, device: &str) -> Option<u32>;
}

/// What was switched off, and its file.
pub(crate) struct Switched<S> {
    path: PathBuf,
    switch: S,
}

impl<S: Switch> Switched<S> {
    pub(crate) fn new(state_dir: &Path, switch: S) -> Self {
        Self {
            path: state_dir.join(FILE),
            switch,
        }
    }

    /// Keeps LRO off on these, and puts it back on all others. Says what was done, and what could not be.
    pub(crate) fn keep_off(&self, wanted: &Devices) -> (Vec<String>, Failures) {
        let (mut done, mut failures) = (Vec::new(), Failures::new());
        let mut kept = match self.read() {
            Ok(kept) => kept,
            Err(why) => return (done, everywhere(wanted, &why)),
        };
        let unwanted = kept.extract_if(.., |name, index| wanted.get(name) != Some(index));
        let unwanted: Devices = unwanted.collect();
        let is_on = |(name, _): &(&String, &u32)| self.switch.is_on(name).unwrap_or(false);
        let on = wanted.iter().filter(is_on);
        let on: Devices = on.map(|(name, index)| (name.clone(), *index)).collect();
        if !on.is_empty() {
            // All that is off must be known before it is, also what is yet to be put back.
            let all = unwanted.iter().chain(&kept).chain(&on);
            let all = all.map(|(name, index)| (name.clone(), *index)).collect();
            if let Err(why) = self.write(&all) {
                return (done, everywhere(&on, &why));
            }
            for (name, index) in on {
                match self.turn(&name, false) {
                    Ok(()) => {
                        done.push(format!("LRO of {name} switched off"));
                        kept.insert(name, index);
                    }
                    // What it stands on may have switched it off meanwhile, and it may be tried again.
                    Err(why) => {
                        kept.insert(name.clone(), index);
                        failures.insert(name, why);
                    }
                }
            }
        }
        if !unwanted.is_empty() {
            let left = self.put_back(unwanted, &mut done, &mut failures);
            kept.extend(left);
            if let Err(why) = self.write(&kept) {
                failures.insert(FILE.to_owned(), why);
            }
        }
        (done, failures)
    }

    /// A device has it only as long as what stands on it has it too, so those that cannot yet are tried again
    /// after the others. What is left is what could not be put back.
    fn put_back(
        &self,
        mut left: Devices,
        done: &mut Vec<String>,
        failures: &mut Failures,
    ) -> Devices {
        left.retain(|name, index| self.switch.index(name) == Some(*index));
        loop {
            let before = left.len();
            let mut whys = Failures::new();
            left.retain(|name, _| match self.turn(name, true) {
                Ok(()) => {
                    done.push(format!("LRO of {name} switched on again"));
                    false
                }
                Err(why) => whys.insert(name.clone(), why).is_none(),
            });
            if left.is_empty() || left.len() == before {
                failures.extend(whys);
                return left;
            }
        }
    }

    fn turn(&self, name: &str, on: bool) -> Result<(), String> {
        let set = self.switch.set(name, on);
        match set.and_then(|()| self.switch.is_on(name)) {
            Ok(is_on) if is_on == on => Ok(()),
            Ok(true) => Err("it stays on".to_owned()),
            Ok(false) => Err("it stays off".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn read(&self) -> Result<Devices, String> {
        let said = |error: &dyn std::fmt::Display| format!("{}: {error}", self.path.display());
        match std::fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| said(&error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Devices::new()),
            Err(error) => Err(said(&error)),
        }
    }

    /// Whole, or not at all; none where nothing is off.
    fn write(&self, devices: &Devices) -> Result<(), String> {
        let write = || -> io::Result<()> {
            let dir = self.path.parent().unwrap_or(Path::new("/"));
            if devices.is_empty() {
                match std::fs::remove_file(&self.path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    removed => removed?,
                }
                return File::open(dir)?.sync_all();
            }
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            serde_json::to_writer(&mut file, devices)?;
            file.write_all(b"\n")?;
            file.as_file().sync_all()?;
            file.persist(&self.path).map_err(|error| error.error)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(|error| format!("{}: {error}", self.path.display()))
    }
}

fn everywhere(devices: &Devices, why: &str) -> Failures {
    let names = devices.keys();
    names.map(|name| (name.clone(), why.to_owned())).collect()
}

/// The kernel's own, by ethtool's ioctl.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ethtool;

const GET_FLAGS: u32 = 0x25;
const SET_FLAGS: u32 = 0x26;
const LRO: u32 = 1 << 15;

/// The kernel's `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// The kernel's `struct ifreq`, as SIOCETHTOOL reads it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: *mut Value,
    rest: [u8; 16],
}

impl Ethtool {
    fn ask(device: &str, command: u32, data: u32) -> io::Result<u32> {
        let kind = (AddressFamily::Inet, SockType::Datagram);
        let socket = socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, None)?;
        let mut value = Value { command, data };
        let mut request = Request {
            name: [0; libc::IFNAMSIZ],
            value: &raw mut value,
            rest: [0; 16],
        };
        // The last byte stays 0.
        let name = device.as_bytes().iter().take(libc::IFNAMSIZ - 1);
        for (place, byte) in request.name.iter_mut().zip(name) {
            *place = *byte;
        }
        // SAFETY: the descriptor is open; the request has the size and layout that SIOCETHTOOL reads, and what
        // it points to is what these two commands read and write, alive until the call is over.
        let result =
            unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        match result {
            0.. => Ok(value.data),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Switch for Ethtool {
    fn is_on(&self, device: &str) -> io::Result<bool> {
        Ok(Self::ask(device, GET_FLAGS, 0)? & LRO != 0)
    }

    fn set(&self, device: &str, on: bool) -> io::Result<()> {
        let flags = Self::ask(device, GET_FLAGS, 0)?;
        let wanted = if on { flags | LRO } else { flags & !LRO };
        Self::ask(device, SET_FLAGS, wanted).map(drop)
    }

    fn index(&self, device: &str) -> Option<u32> {
        if_nametoindex(device).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// bond0 on eth0, as the kernel has them: a port loses it with the bond, and does not get it back with it,
    /// nor before it. eth1 cannot be changed.
    #[derive(Default)]
    struct Fake(RefCell<BTreeMap<String, bool>>);

    impl Switch for &Fake {
        fn is_on(&self, device: &str) -> io::Result<bool> {
            let known = self.0.borrow().get(device).copied();
            known.ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn set(&self, device: &str, on: bool) -> io::Result<()> {
            let mut devices = self.0.borrow_mut();
            match (device, on) {
                ("eth1", _) => return Err(io::ErrorKind::Unsupported.into()),
                ("eth0", true) if !devices["bond0"] => return Ok(()),
                ("bond0", false) => devices.insert("eth0".to_owned(), false),
                _ => None,
            };
            devices.insert(device.to_owned(), on);
            Ok(())
        }

        fn index(&self, device: &str) -> Option<u32> {
            ["", "bond0", "eth0", "eth1"]
                .iter()
                .position(|name| *name == device)
                .map(|index| index as u32)
        }
    }

    fn fake() -> Fake {
        let on = ["bond0", "eth0", "eth1"].map(|name| (name.to_owned(), true));
        Fake(RefCell::new(on.into()))
    }

    fn devices(names: &[&str]) -> Devices {
        let index = |name: &str| (&fake()).index(name).unwrap();
        let with_index = |name: &&str| ((*name).to_owned(), index(name));
        names.iter().map(with_index).collect()
    }

    #[test]
    fn what_is_switched_off_is_known_to_whoever_comes_next() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), fake());
        let state_dir = dir.path().join("state");
        let switched = || Switched::new(&state_dir, &fake);
        let both = devices(&["bond0", "eth0"]);
        assert_eq!(switched().keep_off(&both).1, Failures::new());
        assert_eq!(switched().read().unwrap(), both);
        let on = |name| (&fake).is_on(name).unwrap();
        assert_eq!([on("bond0"), on("eth0"), on("eth1")], [false, false, true]);
        // Nothing more to do, then it is no longer wanted.
        assert_eq!(switched().keep_off(&both), Default::default());
        let (done, failures) = switched().keep_off(&Devices::new());
        assert_eq!((done.len(), failures), (2, Failures::new()));
        assert_eq!([on("bond0"), on("eth0")], [true, true]);
        assert!(!state_dir.join(FILE).exists());
    }

    #[test]
    fn what_was_off_before_stays_off() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), fake());
        let switched = Switched::new(dir.path(), &fake);
        (&fake).set("bond0", false).unwrap();
        let both = devices(&["bond0", "eth0"]);
        assert_eq!(switched.keep_off(&both), Default::default());
        assert_eq!(switched.keep_off(&Devices::new()), Default::default());
        assert!(!(&fake).is_on("bond0").unwrap());
    }

    #[test]
    fn what_cannot_be_is_said_by_name() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), fake());
        let all = devices(&["eth0", "eth1"]);
        let switched = Switched::new(dir.path(), &fake);
        let (done, failures) = switched.keep_off(&all);
        assert_eq!((done.len(), failures.len()), (1, 1));
        assert!(failures.contains_key("eth1"), "{failures:?}");
        // Nothing is touched that could not be written down.
        let nowhere = dir.path().join("file");
        std::fs::write(&nowhere, "").unwrap();
        (&fake).set("eth0", true).unwrap();
        let failures = Switched::new(&nowhere.join("x"), &fake)
            .keep_off(&devices(&["eth0"]))
            .1;
        assert!(failures.contains_key("eth0"), "{failures:?}");
        assert!((&fake).is_on("eth0").unwrap());
    }

    #[test]
    fn a_device_of_the_same_name_is_another_one() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), fake());
        let switched = Switched::new(dir.path(), &fake);
        let other = Devices::from([("eth0".to_owned(), 9)]);
        switched.write(&other).unwrap();
        (&fake).set("eth0", false).unwrap();
        assert_eq!(switched.keep_off(&Devices::new()), Default::default());
        assert!(!(&fake).is_on("eth0").unwrap());
    }

    #[test]
    fn the_kernel_answers() {
        assert!(!Ethtool.is_on("lo").unwrap());
        Ethtool.set("lo", false).unwrap();
        assert!(Ethtool.is_on("no-such-device").is_err());
    }

    #[test]
    fn what_is_fixed_is_fixed() {
        let cases = [(false, false), (false, true), (true, true), (true, false)];
        let found = cases.map(|(is_on, is_changeable)| Lro::of(is_on, is_changeable));
        assert_eq!(found, [Lro::Off, Lro::Off, Lro::On, Lro::Fixed]);
    }
}
