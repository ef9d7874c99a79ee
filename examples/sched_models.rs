//! The same work under six models of serving, for `make bench-sched`: what a message costs under each.
//!
//!   sched_models all [SECONDS]       every model, handler and number of threads; a table, then figure lines
//!   sched_models slow [SECONDS]      an engine whose plugin sleeps 5 s on one message in a thousand, beside one that does not
//!   sched_models some HANDLER THREADS [SECONDS [MODEL...]]   one table of them (handlers: 5us, 50us, 5ms_wait)
//!
//! The machine is never as quiet as one would like. So the models take turns in short rounds, and what is said of one beside
//! another is the median of the rounds' ratios.
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
    use std::collections::VecDeque;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
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

    type Model = fn(TcpListener, usize, Work);

    const MODELS: [(&str, Model); 6] = [
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
        /// By token; a place is used again.
        streams: Mutex<Vec<Option<Arc<Mutex<mio::net::TcpStream>>>>>,
        found: Mutex<VecDeque<usize>>,
        waker: Waker,
    }

    const LISTENER: Token = Token(0);
    const WAKER: Token = Token(1);
    const FIRST: usize = 2;

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
                streams: Mutex::new(vec![None; FIRST]),
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
                            let mut streams = self.streams.lock().expect("no panics");
                            let free = streams[FIRST..].iter().position(Option::is_none).map(|at| at + FIRST);
                            let token = free.unwrap_or(streams.len());
                            let _ = stream.set_nodelay(true);
                            self.registry.register(&mut stream, Token(token), Interest::READABLE).expect("epoll");
                            let stream = Some(Arc::new(Mutex::new(stream)));
                            match streams.get_mut(token) {
                                Some(place) => *place = stream,
                                None => streams.push(stream),
                            }
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
            let stream = self.streams.lock().expect("no panics")[token].clone();
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
                    self.streams.lock().expect("no panics")[token] = None;
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
        processors: usize,
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
                    let began = Instant::now();
                    leader.renew(began);
                    self.serve(token, began);
                    next = if leader.reclaim() && leader.lend() { self.ready.pop() } else { None };
                }
                return;
            }
            // Its part of what waits, and no less than is worth a promotion; the others take the rest (guided
            // self-scheduling, Polychronopoulos and Kuck 1987). What takes longer than a promotion is worth may be waiting
            // for something: nothing must wait behind it.
            let part = waiting.div_ceil(self.processors);
            let share = if mean >= WORTH { 1 } else { part.max((WORTH / mean) as usize).min(64) };
            let mut own = [0; 64];
            own[0] = token;
            let more = (1..share).map_while(|at| self.ready.pop().map(|(token, _)| own[at] = token)).count();
            if !leader.promote() {
                leader.abdicate();
            }
            for token in &own[..=more] {
                self.serve(*token, Instant::now());
            }
        }

        fn wake(&self) {
            let _ = self.ready.waker.wake();
        }
    }

    impl Led {
        fn serve(&self, token: usize, began: Instant) {
            self.ready.serve(token, self.work);
            let took = began.elapsed().as_nanos() as u64;
            let mean = self.mean.load(Ordering::Relaxed);
            self.mean.store(mean - mean / 16 + took / 16, Ordering::Relaxed);
        }
    }

    fn leader_follower(listener: TcpListener, threads: usize, work: Work) {
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        let led = Arc::new(Led { ready: Ready::new(listener), work, mean: AtomicU64::new(0), processors });
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

    const ROUNDS: usize = 5;

    fn median(values: impl Iterator<Item = f64>) -> f64 {
        let mut values: Vec<f64> = values.collect();
        values.sort_unstable_by(f64::total_cmp);
        values[values.len() / 2]
    }

    /// Rounds of all models in turn, each round beginning with another one. A table; figure lines go to `figures`.
    fn compare(models: &[(&str, Model)], work: Work, threads: usize, seconds: f64, figures: &mut Vec<String>) {
        println!("{} handler, {threads} threads", work.name());
        println!("  {:24} {:>10} {:>10} {:>10} {:>10}", "", "rate/s", "p99 us", "CPU us", "switches");
        let mut rounds: Vec<Vec<Outcome>> = models.iter().map(|_| Vec::new()).collect();
        for round in 0..ROUNDS {
            for turn in 0..models.len() {
                let at = (round + turn) % models.len();
                rounds[at].push(measure(models[at].1, threads, work, seconds / ROUNDS as f64));
            }
        }
        for ((name, _), of) in models.iter().zip(&rounds) {
            let figure = |value: fn(&Outcome) -> f64| median(of.iter().map(value));
            let (rate, p99) = (figure(|o| o.rate), figure(|o| o.p99_us));
            let (cost, switches) = (figure(|o| o.cost_us), figure(|o| o.switches));
            println!("  {name:24} {rate:10.0} {p99:10.0} {cost:10.2} {switches:10.2}");
            let key = format!("sched_{name}_{}_{threads}", work.name());
            figures.push(format!("figure {key}_rate {rate:.0} 1/s"));
            figures.push(format!("figure {key}_p99 {p99:.0} us"));
            figures.push(format!("figure {key}_cost {cost:.2} us"));
            figures.push(format!("figure {key}_switches {switches:.2} 1/message"));
        }
        let Some((own, others)) = rounds.split_last().filter(|(_, others)| !others.is_empty()) else { return };
        // The best of the others is the same one for all rounds: the best of each round would be the luckiest.
        let beside = |value: fn(&Outcome) -> f64, better: fn(f64, f64) -> bool| {
            let best = others.iter().reduce(|a, b| {
                let (of_a, of_b) = (median(a.iter().map(value)), median(b.iter().map(value)));
                if better(of_b, of_a) { b } else { a }
            });
            let best = best.expect("another model");
            median(own.iter().zip(best).map(|(ours, theirs)| value(ours) / value(theirs)))
        };
        let key = format!("sched_vs_best_{}_{threads}", work.name());
        let (cost, rate) = (beside(|o| o.cost_us, |b, a| b < a), beside(|o| o.rate, |b, a| b > a));
        println!("  beside the best of the others: cost {cost:.2} x, rate {rate:.2} x");
        figures.push(format!("figure {key}_cost {cost:.2} x"));
        figures.push(format!("figure {key}_rate {rate:.2} x"));
    }

    const WORKS: [Work; 3] = [
        Work::Compute(Duration::from_micros(5)),
        Work::Compute(Duration::from_micros(50)),
        Work::Wait(Duration::from_millis(5)),
    ];

    fn all(seconds: f64) {
        let mut figures = Vec::new();
        for work in WORKS {
            for threads in [2, 8, 64] {
                compare(&MODELS, work, threads, seconds, &mut figures);
            }
        }
        for line in figures {
            println!("{line}");
        }
    }

    fn some(arguments: &[String]) -> Option<()> {
        let work = *WORKS.iter().find(|work| Some(&work.name()) == arguments.first())?;
        let threads = arguments.get(1)?.parse().ok()?;
        let seconds = arguments.get(2).map_or(Some(1.0), |s| s.parse().ok())?;
        let named = arguments.get(3..).unwrap_or_default();
        let wanted = |(name, _): &&(&str, Model)| named.is_empty() || named.iter().any(|n| n == name);
        let models: Vec<_> = MODELS.iter().filter(wanted).copied().collect();
        compare(&models, work, threads, seconds, &mut Vec::new());
        Some(())
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

    /// An engine on a port of its own, with a plugin that sleeps on one in `every` messages (0: on none).
    fn sleeper(every: u32) -> (Arc<Engine>, SocketAddr) {
        let engine = Engine::new();
        let address = engine.listen("udp:127.0.0.1:0").expect("a port");
        engine.set("log", "off").expect("an option");
        let handler = Box::new(Sleeper { calls: AtomicU32::new(0), every });
        let (policy, phase, methods) = (Policy::Parallel, Phase::Normal, Methods::all());
        let name = "sleeper".to_owned();
        engine
            .plug(Plugin { name, policy, phase, methods, deadline_ms: 0, concurrency: 0, handler })
            .expect("a plugin");
        engine.start().expect("threads");
        (engine, address)
    }

    const RATE: usize = 2000;

    /// When answer `n` came, in microseconds since `began`; those that came until nothing came for 1.5 s.
    fn receive(client: UdpSocket, began: Instant, total: usize) -> std::thread::JoinHandle<Vec<Option<u64>>> {
        client.set_read_timeout(Some(Duration::from_millis(1500))).expect("a socket");
        std::thread::spawn(move || {
            let (mut buffer, mut came) = ([0; 2048], vec![None; total]);
            while let Ok(length) = client.recv(&mut buffer) {
                let now = began.elapsed().as_micros() as u64;
                let text = String::from_utf8_lossy(&buffer[..length]);
                let number = text.split("CSeq: ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
                if let Some(place) = number.and_then(|n| came.get_mut(n)) {
                    *place = Some(now);
                }
            }
            came
        })
    }

    /// Two engines at once, 2,000 requests a second for each, turn and turn about: what disturbs one disturbs the other. The
    /// p99 of each second of those answered within a second, and the median of the seconds' ratios.
    fn slow(seconds: f64) {
        let total = RATE * (seconds.max(1.0) as usize);
        let engines = [sleeper(0), sleeper(1000)];
        let began = Instant::now();
        let clients = engines.each_ref().map(|(_, address)| {
            let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
            client.connect(address).expect("an address");
            client
        });
        let receivers = clients.each_ref().map(|c| receive(c.try_clone().expect("a socket"), began, total));
        let mut sent = [Vec::with_capacity(total), Vec::with_capacity(total)];
        for n in 0..total {
            for (which, client) in clients.iter().enumerate() {
                let due = Duration::from_secs_f64((n as f64 + which as f64 / 2.0) / RATE as f64);
                std::thread::sleep(due.saturating_sub(began.elapsed()));
                let message = format!(
                    "OPTIONS sip:example.test SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bK{n};rport\r\n\
                     From: <sip:a@example.test>;tag=1\r\nTo: <sip:b@example.test>\r\nCall-ID: c{n}\r\nCSeq: {n} OPTIONS\r\n\
                     Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
                );
                sent[which].push(began.elapsed().as_micros() as u64);
                client.send(message.as_bytes()).expect("loopback");
            }
        }
        let came = receivers.map(|receiver| receiver.join().expect("the receiver"));
        let within = |which: usize, range: std::ops::Range<usize>| -> Vec<u32> {
            let took = range.filter_map(|n| Some(came[which][n]? - sent[which][n]));
            took.filter(|t| *t < 1_000_000).map(|t| t as u32).collect()
        };
        let answered = [0, 1].map(|which| within(which, 0..total).len());
        println!(
            "of {total} requests at {RATE}/s were answered within 1 s: {} without, {} with sleeps",
            answered[0], answered[1]
        );
        let seconds: Vec<[f64; 2]> = (0..total / RATE)
            .map(|second| [0, 1].map(|which| p99(&mut within(which, second * RATE..(second + 1) * RATE))))
            .collect();
        let ratio = |[without, with]: &[f64; 2]| with / without.max(1.0);
        println!("figure sched_slow_plugin_p99_without {:.0} us", median(seconds.iter().map(|s| s[0])));
        println!("figure sched_slow_plugin_p99_with {:.0} us", median(seconds.iter().map(|s| s[1])));
        println!("figure sched_slow_plugin_p99_ratio {:.2} x", median(seconds.iter().map(ratio)));
        let most = seconds.iter().map(ratio).fold(0.0, f64::max);
        println!("  the worst of {} seconds: {most:.2} x", seconds.len());
        for (engine, _) in engines {
            engine.free();
        }
    }

    pub fn main() {
        let rest: Vec<String> = std::env::args().skip(1).collect();
        let seconds = rest.get(1).and_then(|s| s.parse().ok());
        match rest.first().map(String::as_str) {
            Some("all") => all(seconds.unwrap_or(1.0)),
            Some("slow") => slow(seconds.unwrap_or(30.0)),
            Some("some") if some(&rest[1..]).is_some() => {}
            _ => {
                eprintln!(
                    "usage: sched_models all|slow [SECONDS], sched_models some HANDLER THREADS [SECONDS [MODEL...]]"
                );
                std::process::exit(2);
            }
        }
    }
}
