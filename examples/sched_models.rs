//! The same work under six models of serving, for `make bench-sched`: what a message costs under each.
//!
//!   sched_models all [SECONDS]       every model, handler and number of threads; a table, then figure lines
//!   sched_models slow [SECONDS]      an engine whose plugin sleeps 5 s on one message in a thousand, beside one that does not
//!
//! T connections over TCP on 127.0.0.1 are open at a time and have one request outstanding each; a connection is closed
//! after 200 requests and another opened. The server reads 64 bytes, works (5 us or 50 us of computing, or 5 ms of
//! waiting) and writes 64 bytes. It has T processes or threads, in the models that say so. The generator is one thread of
//! the parent process; the server is a process of its own, whose CPU time and context switches are counted with those of
//! its children.

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("fork, epoll and getrusage are needed");
}

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::{HashMap, VecDeque};
    use std::io::{ErrorKind, Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
    use std::sync::{Arc, Condvar, Mutex, OnceLock};
    use std::time::{Duration, Instant};

    use mio::{Events, Interest, Poll, Token, Waker};
    use partyline::engine::{Engine, Exchange, Handler, Methods, Phase, Plugin, Policy, Verdict};
    use partyline::sched::{Leader, Options, Pool, Source};

    const SIZE: usize = 64;
    const PER_CONNECTION: u32 = 200;

    #[derive(Clone, Copy, PartialEq)]
    enum Work {
        Compute(Duration),
        Wait(Duration),
    }

    impl Work {
        fn name(self) -> String {
            match self {
                Work::Compute(t) => format!("{}us", t.as_micros()),
                Work::Wait(t) => format!("{}ms_wait", t.as_millis()),
            }
        }

        fn run(self) {
            match self {
                // Rounds, not time: a thread that is not on a processor has not worked meanwhile.
                Work::Compute(t) => compute((rounds_per_us() * t.as_micros() as f64) as u64),
                Work::Wait(t) => std::thread::sleep(t),
            }
        }
    }

    fn compute(rounds: u64) {
        let mut x = 0x9E37_79B9u64;
        for i in 0..rounds {
            x = std::hint::black_box(x.rotate_left(5) ^ i);
        }
    }

    fn rounds_per_us() -> f64 {
        static RATE: OnceLock<f64> = OnceLock::new();
        *RATE.get_or_init(|| {
            let best = (0..20).map(|_| {
                let began = Instant::now();
                compute(200_000);
                200_000.0 / began.elapsed().as_secs_f64() / 1e6
            });
            best.fold(0.0, f64::max)
        })
    }

    const MODELS: [(&str, fn(TcpListener, usize, Work)); 6] = [
        ("process_per_connection", process_per_connection),
        ("prefork", prefork),
        ("thread_per_connection", thread_per_connection),
        ("prethread", prethread),
        ("one_queue", one_queue),
        ("leader_follower", leader_follower),
    ];

    /// Serves one connection to its end.
    fn converse(mut stream: TcpStream, work: Work) {
        let mut message = [0; SIZE];
        let _ = stream.set_nodelay(true);
        while stream.read_exact(&mut message).is_ok() {
            work.run();
            if stream.write_all(&message).is_err() {
                return;
            }
        }
    }

    fn fork() -> i32 {
        // SAFETY: called in a process of one thread (the server before it starts any, or a model that starts none).
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        pid
    }

    fn leave() -> ! {
        // SAFETY: ends the process without running what the parent has registered.
        unsafe { libc::_exit(0) }
    }

    fn process_per_connection(listener: TcpListener, _: usize, work: Work) {
        for stream in listener.incoming().flatten() {
            if fork() == 0 {
                converse(stream, work);
                leave();
            }
            drop(stream);
            // Those that have ended; their usage counts from then on.
            // SAFETY: no status is asked for.
            while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
        }
    }

    fn prefork(listener: TcpListener, threads: usize, work: Work) {
        for _ in 1..threads {
            if fork() == 0 {
                // Ends with its parent.
                // SAFETY: a plain request of the kernel's.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                loop {
                    accept_and_converse(&listener, work);
                }
            }
        }
        loop {
            accept_and_converse(&listener, work);
        }
    }

    fn accept_and_converse(listener: &TcpListener, work: Work) {
        if let Ok((stream, _)) = listener.accept() {
            converse(stream, work);
        }
    }

    fn thread_per_connection(listener: TcpListener, _: usize, work: Work) {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || converse(stream, work));
        }
    }

    fn prethread(listener: TcpListener, threads: usize, work: Work) {
        let listener = Arc::new(listener);
        for _ in 1..threads {
            let listener = Arc::clone(&listener);
            std::thread::spawn(move || {
                loop {
                    accept_and_converse(&listener, work);
                }
            });
        }
        loop {
            accept_and_converse(&listener, work);
        }
    }

    /// Connections that are waited for by epoll, and what was found ready.
    struct Ready {
        poll: Mutex<(Poll, Events)>,
        registry: mio::Registry,
        listener: mio::net::TcpListener,
        streams: Mutex<HashMap<usize, Arc<Mutex<mio::net::TcpStream>>>>,
        next: AtomicUsize,
        found: Mutex<VecDeque<usize>>,
        waker: Waker,
    }

    const LISTENER: Token = Token(0);
    const WAKER: Token = Token(1);

    impl Ready {
        fn new(listener: TcpListener) -> Self {
            let poll = Poll::new().expect("epoll");
            let registry = poll.registry().try_clone().expect("epoll");
            listener.set_nonblocking(true).expect("a socket");
            let mut listener = mio::net::TcpListener::from_std(listener);
            registry.register(&mut listener, LISTENER, Interest::READABLE).expect("epoll");
            let waker = Waker::new(&registry, WAKER).expect("eventfd");
            Ready {
                poll: Mutex::new((poll, Events::with_capacity(64))),
                registry,
                listener,
                streams: Mutex::default(),
                next: AtomicUsize::new(2),
                found: Mutex::default(),
                waker,
            }
        }

        /// Waits; connections that can be read go into `found`.
        fn wait(&self, limit: Option<Duration>) {
            let mut poll = self.poll.lock().expect("no panics");
            let (poll, events) = &mut *poll;
            if poll.poll(events, limit).is_err() {
                return;
            }
            for event in events.iter() {
                match event.token() {
                    WAKER => {}
                    LISTENER => {
                        while let Ok((mut stream, _)) = self.listener.accept() {
                            let token = self.next.fetch_add(1, Ordering::Relaxed);
                            let _ = stream.set_nodelay(true);
                            self.registry.register(&mut stream, Token(token), Interest::READABLE).expect("epoll");
                            self.streams.lock().expect("no panics").insert(token, Arc::new(Mutex::new(stream)));
                        }
                    }
                    Token(token) => self.found.lock().expect("no panics").push_back(token),
                }
            }
        }

        fn pop(&self) -> Option<(usize, usize)> {
            let mut found = self.found.lock().expect("no panics");
            let token = found.pop_front()?;
            Some((token, found.len() + 1))
        }

        /// One request of the connection, if there is a whole one (they are sent in one piece).
        fn serve(&self, token: usize, work: Work) {
            let stream = self.streams.lock().expect("no panics").get(&token).cloned();
            let Some(stream) = stream else { return };
            let mut stream = stream.lock().expect("no panics");
            let mut message = [0; SIZE];
            match stream.read(&mut message) {
                Ok(SIZE) => {
                    work.run();
                    let _ = stream.write(&message);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                _ => {
                    let _ = self.registry.deregister(&mut *stream);
                    self.streams.lock().expect("no panics").remove(&token);
                }
            }
        }
    }

    /// Half-sync/half-async: one thread waits, the others take from its queue.
    fn one_queue(listener: TcpListener, threads: usize, work: Work) {
        let ready = Arc::new((Ready::new(listener), Mutex::new(VecDeque::new()), Condvar::new()));
        for _ in 0..threads {
            let ready = Arc::clone(&ready);
            std::thread::spawn(move || {
                loop {
                    let mut queue = ready.1.lock().expect("no panics");
                    let token = loop {
                        match queue.pop_front() {
                            Some(token) => break token,
                            None => queue = ready.2.wait(queue).expect("no panics"),
                        }
                    };
                    drop(queue);
                    ready.0.serve(token, work);
                }
            });
        }
        loop {
            ready.0.wait(None);
            while let Some((token, _)) = ready.0.pop() {
                ready.1.lock().expect("no panics").push_back(token);
                ready.2.notify_one();
            }
        }
    }

    /// The scheduler of this library, as its engine uses it: what is mostly short the leader does itself, and is relieved
    /// when it takes long; what is known to take long it does after having promoted another.
    struct Led {
        ready: Ready,
        work: Work,
        /// Decaying mean of the work, in nanoseconds.
        mean: AtomicU64,
    }

    /// As in `engine/backlog.rs`.
    const WORTH: u64 = 100_000;

    impl Source for Led {
        fn lead(&self, leader: &mut Leader<'_>, timeout: Option<Duration>) {
            let mut next = self.ready.pop();
            if next.is_none() {
                self.ready.wait(timeout);
                leader.events_came();
                next = self.ready.pop();
            }
            let Some((token, waiting)) = next else { return };
            let mean = self.mean.load(Ordering::Relaxed).max(1);
            if mean * waiting as u64 <= WORTH && leader.lend() {
                let mut next = Some((token, waiting));
                while let Some((token, _)) = next {
                    leader.renew(Instant::now());
                    self.serve(token);
                    next = if leader.reclaim() && leader.lend() { self.ready.pop() } else { None };
                }
                return;
            }
            // As much as is worth a promotion; the others take the rest.
            let share = (WORTH / mean).clamp(1, 64) as usize;
            let mut own = [0; 64];
            own[0] = token;
            let more = (1..share).map_while(|at| self.ready.pop().map(|(token, _)| own[at] = token)).count();
            if !leader.promote() {
                leader.abdicate();
            }
            for token in &own[..=more] {
                self.serve(*token);
            }
        }

        fn wake(&self) {
            let _ = self.ready.waker.wake();
        }
    }

    impl Led {
        fn serve(&self, token: usize) {
            let began = Instant::now();
            self.ready.serve(token, self.work);
            let took = began.elapsed().as_nanos() as u64;
            let mean = self.mean.load(Ordering::Relaxed);
            self.mean.store(mean - mean / 16 + took / 16, Ordering::Relaxed);
        }
    }

    fn leader_follower(listener: TcpListener, threads: usize, work: Work) {
        let led = Arc::new(Led { ready: Ready::new(listener), work, mean: AtomicU64::new(0) });
        let options = Options { name: "lf".into(), min: threads, max: threads, ..Options::default() };
        let pool = Pool::new(options, Some(led as Arc<dyn Source>)).expect("a pool");
        pool.start().expect("threads");
        loop {
            std::thread::park();
        }
    }

    struct Outcome {
        rate: f64,
        p99_us: f64,
        cost_us: f64,
        switches: f64,
    }

    /// T connections, one request outstanding on each. Latencies of the messages after the first tenth of the time.
    fn generate(server: SocketAddr, connections: usize, seconds: f64) -> (u64, Vec<u32>) {
        let mut poll = Poll::new().expect("epoll");
        let mut events = Events::with_capacity(128);
        let mut open: Vec<(TcpStream, mio::net::TcpStream, Instant, u32)> = Vec::new();
        let connect = |poll: &Poll, at: usize| {
            let stream = TcpStream::connect(server).expect("the server accepts");
            stream.set_nodelay(true).expect("a socket");
            stream.set_nonblocking(true).expect("a socket");
            let mut polled = mio::net::TcpStream::from_std(stream.try_clone().expect("a socket"));
            poll.registry().register(&mut polled, Token(at), Interest::READABLE).expect("epoll");
            (stream, polled, Instant::now(), 0)
        };
        let message = [7u8; SIZE];
        for at in 0..connections {
            let mut one = connect(&poll, at);
            one.0.write_all(&message).expect("room for a message");
            open.push(one);
        }
        let (began, mut answered, mut latencies) = (Instant::now(), 0, Vec::new());
        let end = began + Duration::from_secs_f64(seconds);
        while Instant::now() < end {
            poll.poll(&mut events, Some(Duration::from_millis(100))).expect("epoll");
            for event in events.iter() {
                let at = event.token().0;
                let mut answer = [0; SIZE];
                if !matches!(open[at].0.read(&mut answer), Ok(SIZE)) {
                    continue;
                }
                let now = Instant::now();
                answered += 1;
                if (now - began).as_secs_f64() > seconds / 10.0 {
                    latencies.push((now - open[at].2).as_micros() as u32);
                }
                open[at].3 += 1;
                if open[at].3 == PER_CONNECTION {
                    open[at] = connect(&poll, at);
                }
                open[at].2 = Instant::now();
                open[at].0.write_all(&message).expect("room for a message");
            }
        }
        (answered, latencies)
    }

    fn p99(latencies: &mut [u32]) -> f64 {
        latencies.sort_unstable();
        latencies.get(latencies.len() * 99 / 100).map_or(f64::NAN, |l| f64::from(*l))
    }

    fn usage(who: libc::c_int) -> (f64, f64) {
        // SAFETY: a struct of numbers, for which zero is a value, filled in by the call.
        let used = unsafe {
            let mut used: libc::rusage = std::mem::zeroed();
            libc::getrusage(who, &raw mut used);
            used
        };
        let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
        (seconds(used.ru_utime) + seconds(used.ru_stime), (used.ru_nvcsw + used.ru_nivcsw) as f64)
    }

    fn measure(serve: fn(TcpListener, usize, Work), threads: usize, work: Work, seconds: f64) -> Outcome {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = listener.local_addr().expect("a port");
        rounds_per_us();
        let before = usage(libc::RUSAGE_CHILDREN);
        let pid = fork();
        if pid == 0 {
            // A group of its own: its children are ended with it, and waited for, so that their usage counts.
            // SAFETY: signals of this process only; the handler only ends children and the process.
            unsafe {
                libc::setpgid(0, 0);
                libc::signal(libc::SIGTERM, end_group as extern "C" fn(libc::c_int) as libc::sighandler_t);
            }
            serve(listener, threads, work);
            leave();
        }
        drop(listener);
        let (answered, mut latencies) = generate(server, threads, seconds);
        // SAFETY: a child of this process that has not been waited for.
        unsafe {
            libc::kill(pid, libc::SIGTERM);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
        let after = usage(libc::RUSAGE_CHILDREN);
        let n = answered as f64;
        Outcome {
            rate: n / seconds,
            p99_us: p99(&mut latencies),
            cost_us: (after.0 - before.0) * 1e6 / n,
            switches: (after.1 - before.1) / n,
        }
    }

    /// Ends the server's children and waits for them.
    extern "C" fn end_group(_: libc::c_int) {
        // SAFETY: functions that a signal handler may call; the group is this process's own, and it ignores the signal.
        unsafe {
            libc::signal(libc::SIGUSR2, libc::SIG_IGN);
            libc::kill(0, libc::SIGUSR2);
            while libc::waitpid(-1, std::ptr::null_mut(), 0) > 0 {}
            libc::_exit(0);
        }
    }

    fn all(seconds: f64) {
        let works = [
            Work::Compute(Duration::from_micros(5)),
            Work::Compute(Duration::from_micros(50)),
            Work::Wait(Duration::from_millis(5)),
        ];
        let mut figures = Vec::new();
        for work in works {
            for threads in [2, 8, 64] {
                println!("{} handler, {threads} threads", work.name());
                println!("  {:24} {:>10} {:>10} {:>10} {:>10}", "", "rate/s", "p99 us", "CPU us", "switches");
                let mut rows = Vec::new();
                for (name, serve) in MODELS {
                    let o = measure(serve, threads, work, seconds);
                    println!("  {name:24} {:10.0} {:10.0} {:10.2} {:10.2}", o.rate, o.p99_us, o.cost_us, o.switches);
                    let key = format!("sched_{name}_{}_{threads}", work.name());
                    figures.push(format!("figure {key}_rate {:.0} 1/s", o.rate));
                    figures.push(format!("figure {key}_p99 {:.0} us", o.p99_us));
                    figures.push(format!("figure {key}_cost {:.2} us", o.cost_us));
                    figures.push(format!("figure {key}_switches {:.2} 1/message", o.switches));
                    rows.push(o);
                }
                let (own, others) = rows.split_last().expect("six models");
                let least = others.iter().map(|o| o.cost_us).fold(f64::INFINITY, f64::min);
                let most = others.iter().map(|o| o.rate).fold(0.0, f64::max);
                let key = format!("sched_vs_best_{}_{threads}", work.name());
                figures.push(format!("figure {key}_cost {:.2} x", own.cost_us / least));
                figures.push(format!("figure {key}_rate {:.2} x", own.rate / most));
            }
        }
        for line in figures {
            println!("{line}");
        }
    }

    /// Answers; every thousandth message, if told so, only after 5 s.
    struct Sleeper {
        calls: AtomicU32,
        every: u32,
    }

    impl Handler for Sleeper {
        fn call(&self, exchange: &mut Exchange<'_>) -> Verdict {
            let n = self.calls.fetch_add(1, Ordering::Relaxed);
            if self.every > 0 && n % self.every == self.every - 1 {
                std::thread::sleep(Duration::from_secs(5));
            }
            let _ = exchange.reply(200, None, b"", b"");
            Verdict::Done
        }
    }

    /// 2,000 requests per second for the time given; latencies of those that were answered within a second.
    fn serve_with(every: u32, seconds: f64) -> (Vec<u32>, usize) {
        const RATE: f64 = 2000.0;
        let engine = Engine::new();
        let port = engine.listen("udp:127.0.0.1:0").expect("a port").port();
        engine.set("log", "off").expect("an option");
        let handler = Box::new(Sleeper { calls: AtomicU32::new(0), every });
        let (policy, phase, methods) = (Policy::Parallel, Phase::Normal, Methods::all());
        let name = "sleeper".to_owned();
        engine
            .plug(Plugin { name, policy, phase, methods, deadline_ms: 0, concurrency: 0, handler })
            .expect("a plugin");
        engine.start().expect("threads");
        let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
        client.connect(("127.0.0.1", port)).expect("an address");
        let total = (RATE * seconds) as usize;
        let sent: Arc<Vec<AtomicU64>> = Arc::new((0..total).map(|_| AtomicU64::new(0)).collect());
        let began = Instant::now();
        let receiver = {
            let (client, sent) = (client.try_clone().expect("a socket"), Arc::clone(&sent));
            client.set_read_timeout(Some(Duration::from_millis(1500))).expect("a socket");
            std::thread::spawn(move || {
                let (mut buffer, mut latencies) = ([0; 2048], Vec::new());
                while let Ok(length) = client.recv(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..length]);
                    let number =
                        text.split("CSeq: ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
                    let Some(at) = number.and_then(|n| sent.get(n)) else { continue };
                    let took = began.elapsed().as_micros() as u64 - at.load(Ordering::Relaxed);
                    if took < 1_000_000 {
                        latencies.push(took as u32);
                    }
                }
                latencies
            })
        };
        for n in 0..total {
            let due = Duration::from_secs_f64(n as f64 / RATE);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            let message = format!(
                "OPTIONS sip:example.test SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bK{n};rport\r\n\
                 From: <sip:a@example.test>;tag=1\r\nTo: <sip:b@example.test>\r\nCall-ID: c{n}\r\nCSeq: {n} OPTIONS\r\n\
                 Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
            );
            sent[n].store(began.elapsed().as_micros() as u64, Ordering::Relaxed);
            client.send(message.as_bytes()).expect("loopback");
        }
        let latencies = receiver.join().expect("the receiver");
        engine.free();
        (latencies, total)
    }

    fn slow(seconds: f64) {
        let (mut plain, total) = serve_with(0, seconds);
        let (mut sleepy, _) = serve_with(1000, seconds);
        println!(
            "of {total} requests at 2000/s were answered within 1 s: {} without, {} with sleeps",
            plain.len(),
            sleepy.len()
        );
        let (plain, sleepy) = (p99(&mut plain), p99(&mut sleepy));
        println!("figure sched_slow_plugin_p99_without {plain:.0} us");
        println!("figure sched_slow_plugin_p99_with {sleepy:.0} us");
        println!("figure sched_slow_plugin_p99_ratio {:.2} x", sleepy / plain.max(1.0));
    }

    pub fn main() {
        let mut arguments = std::env::args().skip(1);
        let what = arguments.next();
        let seconds = arguments.next().and_then(|s| s.parse().ok());
        match what.as_deref() {
            Some("all") => all(seconds.unwrap_or(1.0)),
            Some("slow") => slow(seconds.unwrap_or(12.0)),
            _ => {
                eprintln!("usage: sched_models all|slow [SECONDS]");
                std::process::exit(2);
            }
        }
    }
}
