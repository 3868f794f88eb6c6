//! A terminal on which a program can be started, and which can be closed while it runs.

use std::{
    fs::File,
    io::Read,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

/// A terminal of 80 × 24 characters. What is printed on it is read all the time.
pub struct Pty {
    master: OwnedFd,
    printed: Arc<Mutex<Vec<u8>>>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Pty {
    /// Starts `command` with a new controlling terminal: closing it sends the program SIGHUP.
    pub fn start(mut command: Command) -> (Self, Child) {
        let (mut master, mut slave) = (-1, -1);
        let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: both numbers are written by the call, nothing else is; then each belongs to one owner.
        let (master, slave) = unsafe {
            let made = libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null(), &size);
            assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
            libc::fcntl(master, libc::F_SETFD, libc::FD_CLOEXEC);
            libc::fcntl(master, libc::F_SETFL, libc::O_NONBLOCK);
            (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
        };
        let end = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: between fork and exec only these two system calls are made.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY as _, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        drop((command, slave)); // the program's ends are the only ones left
        let (printed, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(std::sync::atomic::AtomicBool::new(false)));
        let mut file = File::from(master.try_clone().unwrap());
        let (to, until) = (printed.clone(), stop.clone());
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !until.load(std::sync::atomic::Ordering::SeqCst) {
                match file.read(&mut buffer) {
                    Ok(count) if count > 0 => to.lock().unwrap().extend(&buffer[..count]),
                    Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => return, // the program has ended
                    _ => std::thread::sleep(std::time::Duration::from_millis(5)),
                }
            }
        });
        (Self { master, printed, stop, reader: Some(reader) }, child)
    }

    /// What was printed until now.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.printed.lock().unwrap()).into_owned()
    }

    /// Closes the terminal.
    pub fn close(mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        self.reader.take().unwrap().join().unwrap();
        drop(self.master);
    }

    /// What was printed until the program ended.
    pub fn read_all(mut self) -> String {
        self.reader.take().unwrap().join().unwrap();
        self.text()
    }
}
