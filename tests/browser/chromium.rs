//! Drives Debian's Chromium by its own protocol over pipes: no driver program, no port, one process for many pages.
//!
//! `page(URL, CREDENTIAL)` is what most tests need.
// Each test binary that has this file uses a part of it.
#![allow(dead_code)]

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Ample time for any answer of the browser.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What is looked at after a page has loaded: its text, how wide it is, and text whose contrast with what is behind it
/// is below the 4.5 (large text: 3) of WCAG 2.2, 1.4.3.
const LOOK: &str = r#"(() => {
  const channels = text => (text.match(/[\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = channels(getComputedStyle(at).backgroundColor);
      if (colour.length >= 3 && (colour.length === 3 || colour[3] === 1)) return colour;
    }
    return [255, 255, 255];
  };
  // What only screen readers get is cut to a pixel.
  const hidden = element => {
    for (let at = element; at; at = at.parentElement)
      if (at.clientWidth <= 1 && getComputedStyle(at).position === 'absolute') return true;
    return false;
  };
  const faint = [], wide = [];
  for (const element of document.body.querySelectorAll('*')) {
    const box = element.getBoundingClientRect();
    if (box.width > 1 && box.right > innerWidth + 1 && !element.closest('.scroll') && !element.closest('svg svg') && !hidden(element))
      wide.push(element.tagName + '.' + element.getAttribute('class') + ' ends at ' + Math.round(box.right));
    // What goes beyond a drawing is cut off.
    const drawing = element.tagName === 'text' && element.closest('svg').getBoundingClientRect();
    if (drawing && (box.right > drawing.right + 1 || box.left < drawing.left - 1))
      wide.push('"' + element.textContent + '" of a drawing is cut off');
    if (innerWidth < 640 && element.matches('tbody th a') && element.getClientRects().length > 1 && element.textContent.length < 30)
      wide.push('"' + element.textContent + '" is broken into lines');
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || box.width < 2) continue;
    const style = getComputedStyle(element), svg = element instanceof SVGElement;
    const fore = light(channels(svg ? style.fill : style.color)), back = light(behind(element));
    const ratio = (Math.max(fore, back) + 0.05) / (Math.min(fore, back) + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) faint.push(ratio.toFixed(2) + ' ' + element.textContent.trim().slice(0, 40));
  }
  return JSON.stringify({
    html: document.documentElement.outerHTML, text: document.body.innerText,
    scroll_width: document.documentElement.scrollWidth, width: innerWidth, faint, wide,
    height: document.documentElement.scrollHeight,
  });
})()"#;

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// CSS pixels.
    pub width: u32,
    pub dark: bool,
    /// Whether the browser runs scripts of pages.
    pub scripts: bool,
}

impl Default for View {
    fn default() -> Self {
        Self { width: 1280, dark: false, scripts: true }
    }
}

/// A page as the browser shows it.
#[derive(Clone, Debug, Default)]
pub struct Dom {
    /// HTTP status of the page.
    pub status: u16,
    /// The document after parsing.
    pub html: String,
    /// What can be read.
    pub text: String,
    /// Width of the window, and of the whole content: more means that it must be scrolled sideways.
    pub width: u32,
    pub scroll_width: u32,
    /// Elements that go beyond the window.
    pub wide: Vec<String>,
    /// Texts with too little contrast.
    pub faint: Vec<String>,
    /// What the browser complained about, such as violations of the page's policy.
    pub complaints: Vec<String>,
}

impl Dom {
    /// What must hold of every page of the dashboard, at every width: it can be read, by eyes and by screen readers, and needs no script.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn is_readable(&self, width: u32) -> Result<()> {
        for landmark in ["<header", "<main", "<footer", "<nav", "lang=\"en\""] {
            ensure!(self.html.contains(landmark), "has no {landmark}");
        }
        ensure!(self.html.matches("<h1").count() == 1, "has not one heading of the first level");
        ensure!(!self.html.contains("<script"), "has a script");
        ensure!(self.width == width && self.scroll_width <= width, "is {} wide: {:?}", self.scroll_width, self.wide);
        // Between phone and desk a wide table is moved inside its section.
        ensure!(width == 800 || self.wide.is_empty(), "elements go beyond the window: {:?}", self.wide);
        ensure!(self.faint.is_empty(), "texts with too little contrast: {:?}", self.faint);
        ensure!(self.complaints.is_empty() || self.status != 200, "the browser complains: {:?}", self.complaints);
        Ok(())
    }
}

/// Opens one page in a browser of its own. The credential is an API key or a token.
pub fn page(url: &str, credential: &str) -> Result<Dom> {
    Chromium::start()?.open(url, credential, View::default(), None)
}

/// A running browser. It ends with this value.
pub struct Chromium {
    process: Child,
    commands: File,
    messages: Receiver<Value>,
    next: u64,
    session: String,
    events: Vec<Value>,
    _folder: tempfile::TempDir,
}

impl Chromium {
    /// Starts the browser named by `CHROMIUM`, else `chromium`.
    pub fn start() -> Result<Self> {
        let program = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".into());
        let missing = || {
            format!(
                "{program} cannot be run; run tests/browser/install-chromium as root (apt-get install chromium), \
                 or name a Chromium by the variable CHROMIUM"
            )
        };
        let version = Command::new(&program).arg("--version").output().with_context(missing)?;
        if !version.status.success() {
            bail!(missing());
        }
        let folder = tempfile::tempdir()?;
        let pipe = |name: &str| -> Result<std::path::PathBuf> {
            let path = folder.path().join(name);
            let made = Command::new("mkfifo").arg(&path).status().context("mkfifo cannot be run")?;
            if made.success() { Ok(path) } else { bail!("mkfifo {} failed", path.display()) }
        };
        let (commands, answers) = (pipe("commands")?, pipe("answers")?);
        // Opened for reading as well, so that opening does not wait for the other end.
        let writer = OpenOptions::new().read(true).write(true).open(&commands)?;
        let profile = folder.path().join("profile");
        // The browser reads commands from descriptor 3 and writes to 4; the shell gives them without any code of ours
        // between fork and exec.
        let process = Command::new("sh")
            .arg("-c")
            .arg(r#"commands=$1 answers=$2; shift 2; exec "$@" 3<"$commands" 4>"$answers""#)
            .arg("sh")
            .args([commands.as_os_str(), answers.as_os_str()])
            .arg(&program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
            .args(["--disable-background-networking", "--disable-component-update", "--no-first-run"])
            .args(["--disable-breakpad", "--force-color-profile=srgb", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("about:blank")
            // Nothing of the user's: no settings, no proxy, no display.
            .env("HOME", folder.path())
            .env_remove("DISPLAY")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let reader = File::open(&answers)?;
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(reader).split(0) {
                let Ok(message) = message else { return };
                let Ok(message) = serde_json::from_slice(&message) else { continue };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            process,
            commands: writer,
            messages,
            next: 0,
            session: String::new(),
            events: Vec::new(),
            _folder: folder,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))?;
        let attached =
            browser.call("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true}))?;
        browser.session = attached["sessionId"].as_str().context("no session")?.to_owned();
        for domain in ["Page", "Network", "Log", "Runtime", "Audits"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Opens a page and waits until it and all that it embeds has loaded; saves what it looks like, if a file is given.
    pub fn open(&mut self, url: &str, credential: &str, view: View, screenshot: Option<&Path>) -> Result<Dom> {
        let scheme = if view.dark { "dark" } else { "light" };
        let narrow = view.width < 640;
        self.size(view.width, 900, narrow)?;
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", media)?;
        self.call("Emulation.setScriptExecutionDisabled", json!({"value": !view.scripts}))?;
        let headers = json!({"headers": {"Authorization": format!("Bearer {credential}")}});
        self.call("Network.setExtraHTTPHeaders", headers)?;
        self.events.clear();
        let gone = self.call("Page.navigate", json!({"url": url}))?;
        if let Some(error) = gone["errorText"].as_str() {
            bail!("{url}: {error}");
        }
        let frame = gone["frameId"].clone();
        self.wait(|event| event["method"] == "Page.loadEventFired").with_context(|| format!("{url} did not load"))?;
        let looked = self.call("Runtime.evaluate", json!({"expression": LOOK, "returnByValue": true}))?;
        let looked = looked["result"]["value"].as_str().with_context(|| format!("{url}: {looked}"))?;
        let looked: Value = serde_json::from_str(looked)?;
        let number = |name: &str| looked[name].as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        let words = |name: &str| {
            let list = looked[name].as_array().into_iter().flatten();
            list.filter_map(|word| word.as_str().map(str::to_owned)).collect::<Vec<_>>()
        };
        if let Some(file) = screenshot {
            self.size(view.width, number("height").clamp(600, 16_000), narrow)?;
            let shot = self.call("Page.captureScreenshot", json!({"format": "png"}))?;
            let bytes = STANDARD.decode(shot["data"].as_str().context("no picture")?)?;
            std::fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let status = self.events.iter().find_map(|event| {
            let params = &event["params"];
            let document = event["method"] == "Network.responseReceived"
                && params["type"] == "Document"
                && params["frameId"] == frame;
            document.then(|| params["response"]["status"].as_u64()).flatten()
        });
        Ok(Dom {
            status: u16::try_from(status.context("no response")?)?,
            html: looked["html"].as_str().unwrap_or_default().to_owned(),
            text: looked["text"].as_str().unwrap_or_default().to_owned(),
            width: number("width"),
            scroll_width: number("scroll_width"),
            wide: words("wide"),
            faint: words("faint"),
            complaints: self.events.iter().filter_map(complaint).collect(),
        })
    }

    fn size(&mut self, width: u32, height: u32, mobile: bool) -> Result<()> {
        let scale = if mobile { 2 } else { 1 };
        let size = json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile});
        self.call("Emulation.setDeviceMetricsOverride", size).map(drop)
    }

    fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.next += 1;
        let id = self.next;
        let mut command = json!({"id": id, "method": method, "params": params});
        if !self.session.is_empty() {
            command["sessionId"] = json!(self.session);
        }
        let mut bytes = serde_json::to_vec(&command)?;
        bytes.push(0);
        self.commands.write_all(&bytes).context("the browser has ended")?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let message = self.message(deadline).with_context(|| format!("no answer to {method}"))?;
            if message["id"] == id {
                return match message.get("error") {
                    Some(error) => Err(anyhow!("{method}: {error}")),
                    None => Ok(message["result"].clone()),
                };
            }
            self.events.push(message);
        }
    }

    /// Waits for an event, also one that came before.
    fn wait(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        while !self.events.iter().any(&wanted) {
            let message = self.message(deadline)?;
            self.events.push(message);
        }
        Ok(())
    }

    fn message(&self, deadline: Instant) -> Result<Value> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.messages.recv_timeout(left).map_err(|error| anyhow!("the browser does not answer: {error}"))
    }
}

/// What the browser complains about, in an event.
fn complaint(event: &Value) -> Option<String> {
    let params = &event["params"];
    match event["method"].as_str()? {
        "Log.entryAdded" if params["entry"]["level"] == "error" => Some(params["entry"]["text"].to_string()),
        "Runtime.exceptionThrown" => Some(params["exceptionDetails"].to_string()),
        "Audits.issueAdded" if params["issue"]["code"] == "ContentSecurityPolicyIssue" => {
            Some(params["issue"]["details"].to_string())
        }
        _ => None,
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        self.session.clear();
        let closed = self.call("Browser.close", json!({})).is_ok();
        let deadline = Instant::now() + Duration::from_secs(10);
        while closed && Instant::now() < deadline {
            if matches!(self.process.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
