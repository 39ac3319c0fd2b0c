//! The proxy: reads each EC2 call, answers, loses or changes it as the test said, and forwards the rest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What happens to one call.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// It is answered with an error, and does nothing.
    Refused {
        /// HTTP status.
        status: u16,
        /// EC2's code.
        code: &'static str,
    },
    /// It takes effect, and the connection ends without an answer.
    Lost,
    /// It takes effect, and the answer comes only after so long.
    Held(Duration),
}

/// In front of one server.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Where it listens.
    pub url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    server: String,
    room: usize,
    /// Instances that run.
    running: BTreeSet<String>,
    faults: BTreeMap<&'static str, VecDeque<Fault>>,
    canned: BTreeMap<&'static str, String>,
    spot_usd_per_h: Option<f64>,
    hidden_until: Option<Instant>,
    calls: BTreeMap<String, u32>,
    /// Calls that launched: action and client token.
    tokens: Vec<String>,
}

/// One call: its parameters, in order.
#[derive(Debug)]
struct Call(Vec<(String, String)>);

impl Call {
    fn read(body: &str) -> Self {
        let pair = |p: &str| p.split_once('=').map(|(k, v)| (decoded(k), decoded(v)));
        Self(body.split('&').filter_map(pair).collect())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    fn all(&self, prefix: &str) -> Vec<String> {
        self.0.iter().filter(|(k, _)| k.starts_with(prefix)).map(|(_, v)| v.clone()).collect()
    }
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut i) = (Vec::new(), 0);
    while i < bytes.len() {
        let hex = (bytes[i] == b'%').then(|| text.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(h, 16).ok()));
        match hex.flatten() {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(if bytes[i] == b'+' { b' ' } else { bytes[i] });
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

impl Proxy {
    pub(super) async fn start(server: String, room: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let state = Arc::new(Mutex::new(State {
            server,
            room,
            running: BTreeSet::new(),
            faults: BTreeMap::new(),
            canned: BTreeMap::new(),
            spot_usd_per_h: None,
            hidden_until: None,
            calls: BTreeMap::new(),
            tokens: Vec::new(),
        }));
        let proxy = Self { url, state };
        let serving = proxy.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let proxy = serving.clone();
                tokio::spawn(async move { proxy.serve(stream).await.unwrap_or(()) });
            }
        });
        proxy
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next call of this action fails so.
    pub fn next(&self, action: &'static str, fault: Fault) {
        self.lock().faults.entry(action).or_default().push_back(fault);
    }

    /// Calls of this action are answered with this, for calls that moto has not.
    pub fn answer(&self, action: &'static str, xml: &str) {
        let body = format!("<{action}Response><requestId>r</requestId>{xml}</{action}Response>");
        self.lock().canned.insert(action, body);
    }

    /// Every spot pool costs this; moto's own price is a thousandth of a cent.
    pub fn set_spot_price(&self, usd_per_h: f64) {
        self.lock().spot_usd_per_h = Some(usd_per_h);
    }

    /// For so long no list shows any instance.
    pub fn hide_instances(&self, time: Duration) {
        self.lock().hidden_until = Some(Instant::now() + time);
    }

    /// Instances that run, as far as calls passed here.
    pub fn running(&self) -> usize {
        self.lock().running.len()
    }

    /// Calls of an action so far.
    pub fn calls(&self, action: &str) -> u32 {
        self.lock().calls.get(action).copied().unwrap_or(0)
    }

    /// Client tokens of the launches that reached the server.
    pub fn launches(&self) -> Vec<String> {
        self.lock().tokens.clone()
    }

    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let (head, body) = read_message(&mut stream).await?;
        let mut call = Call::read(&body);
        let action = call.get("Action").unwrap_or_default().to_owned();
        let (fault, canned) = {
            let mut state = self.lock();
            *state.calls.entry(action.clone()).or_default() += 1;
            let fault = state.faults.get_mut(action.as_str()).and_then(VecDeque::pop_front);
            (fault, state.canned.get(action.as_str()).cloned())
        };
        if let Some(Fault::Refused { status, code }) = fault {
            return reply(&mut stream, status, &error(code)).await;
        }
        if let Some(xml) = canned {
            return reply(&mut stream, 200, &xml).await;
        }
        if let Err(code) = self.admit(&action, &mut call) {
            return reply(&mut stream, 400, &error(code)).await;
        }
        let (status, answer) = self.forward(&head, &call).await?;
        let answer = self.seen(&action, &call, status, answer);
        match fault {
            Some(Fault::Lost) => return Ok(()),
            Some(Fault::Held(time)) => tokio::time::sleep(time).await,
            _ => {}
        }
        reply(&mut stream, status, &answer).await
    }

    /// Capacity. moto launches the least that is asked for, EC2 as many as there are up to the most.
    fn admit(&self, action: &str, call: &mut Call) -> Result<(), &'static str> {
        let state = self.lock();
        let free = state.room.saturating_sub(state.running.len());
        match action {
            "RunInstances" => {
                let most: usize = call.get("MaxCount").and_then(|n| n.parse().ok()).unwrap_or(1);
                if free == 0 {
                    return Err("InsufficientInstanceCapacity");
                }
                for (_, value) in call.0.iter_mut().filter(|(k, _)| k == "MinCount" || k == "MaxCount") {
                    *value = most.min(free).to_string();
                }
            }
            "StartInstances" if free == 0 => return Err("InsufficientInstanceCapacity"),
            _ => {}
        }
        Ok(())
    }

    /// Minds what an answer did, and changes what moto says otherwise than EC2.
    fn seen(&self, action: &str, call: &Call, status: u16, mut answer: String) -> String {
        let mut state = self.lock();
        let named = call.all("InstanceId.");
        match action {
            "RunInstances" if status == 200 => {
                state.tokens.extend(call.get("ClientToken").map(str::to_owned));
                let ids = answer.split("<instanceId>").skip(1).filter_map(|t| t.split('<').next());
                state.running.extend(ids.map(str::to_owned).collect::<Vec<_>>());
            }
            "TerminateInstances" | "StopInstances" if status == 200 => {
                state.running.retain(|id| !named.contains(id));
            }
            "StartInstances" if status == 200 => state.running.extend(named),
            "DescribeSpotPriceHistory" => {
                if let Some(price) = state.spot_usd_per_h {
                    answer = answer.replace("<spotPrice>0.00001<", &format!("<spotPrice>{price}<"));
                }
            }
            "DescribeInstances" if state.hidden_until.is_some_and(|until| Instant::now() < until) => {
                answer = "<DescribeInstancesResponse><requestId>r</requestId><reservationSet/>\
                          </DescribeInstancesResponse>"
                    .into();
            }
            _ => {}
        }
        answer
    }

    async fn forward(&self, head: &str, call: &Call) -> std::io::Result<(u16, String)> {
        let server = self.lock().server.clone();
        let body: Vec<String> = call.0.iter().map(|(k, v)| format!("{}={}", encoded(k), encoded(v))).collect();
        let body = body.join("&");
        // moto reads service and region from the scope of the signature, and does not check it. What a test sends by hand
        // has none.
        let scope = "Credential=key/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0";
        let unsigned = !head.to_ascii_lowercase().contains("\nauthorization:");
        let signature = if unsigned { format!("authorization: AWS4-HMAC-SHA256 {scope}\r\n") } else { String::new() };
        let dropped = ["content-length", "connection", "host", "expect", "content-type"];
        let kept: String = head
            .lines()
            .skip(1)
            .filter(|l| !dropped.iter().any(|d| l.to_ascii_lowercase().starts_with(&format!("{d}:"))))
            .map(|l| format!("{l}\r\n"))
            .collect();
        let request = format!(
            "POST / HTTP/1.1\r\nhost: ec2.us-east-1.amazonaws.com\r\nconnection: close\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n{signature}{kept}\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(server).await?;
        stream.write_all(request.as_bytes()).await?;
        let (head, body) = read_message(&mut stream).await?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(500);
        Ok((status, body))
    }
}

fn error(code: &str) -> String {
    format!(
        "<Response><Errors><Error><Code>{code}</Code><Message>the proxy says so</Message></Error></Errors>\
         <RequestID>r</RequestID></Response>"
    )
}

async fn reply(stream: &mut TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: text/xml\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// Head and body of a message whose length is said.
async fn read_message(stream: &mut TcpStream) -> std::io::Result<(String, String)> {
    let mut bytes = Vec::new();
    loop {
        let mut part = [0; 8192];
        let read = stream.read(&mut part).await?;
        bytes.extend_from_slice(&part[..read]);
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head
                .lines()
                .filter_map(|l| l.split_once(':'))
                .find(|(k, _)| k.eq_ignore_ascii_case("content-length"))
                .and_then(|(_, v)| v.trim().parse::<usize>().ok())
                .unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                let body = String::from_utf8_lossy(&bytes[end + 4..end + 4 + length]).into_owned();
                return Ok((head, body));
            }
        }
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}
