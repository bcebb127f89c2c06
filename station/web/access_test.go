package web_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/provisiond/provisiond/station/web"
)

// axe-core (MPL-2.0) is not part of this repository. It is fetched once from the npm
// registry, held against its sum, and kept in the user's cache.
const (
	axeVersion = "4.14.1"
	axeSum     = "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745"
)

// axe gives the text of axe.min.js. Without the registry, and without a copy in the
// cache, the test is skipped; our own rules below hold everywhere.
func axe(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "provisiond", "axe-core-"+axeVersion)
	tarball := filepath.Join(dir, "axe-core-"+axeVersion+".tgz")
	b, err := os.ReadFile(tarball)
	if errors.Is(err, os.ErrNotExist) {
		if b, err = fetchAxe(t); err != nil {
			t.Skipf("needs the npm registry, once, to fetch axe-core %s: %v", axeVersion, err)
		}
		err = errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(tarball+".new", b, 0o644), os.Rename(tarball+".new", tarball))
	}
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != axeSum {
		t.Fatalf("%s is not the axe-core that this test knows: remove it", tarball)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err != nil {
			t.Fatal("no axe.min.js in the package:", err)
		}
		if h.Name == "package/axe.min.js" {
			js, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			return string(js)
		}
	}
}

// fetchAxe asks the registry that npm would ask.
func fetchAxe(t *testing.T) ([]byte, error) {
	t.Helper()
	registry := cmp.Or(os.Getenv("NPM_CONFIG_REGISTRY"), os.Getenv("npm_config_registry"), "https://registry.npmjs.org")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(registry, "/")+"/axe-core/-/axe-core-"+axeVersion+".tgz", nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment}} // leaves nothing running
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, 16<<20))
}

var allPages = []string{
	"/login", "/login?with=password", "/", "/slots/A1", "/slots/A3", "/slots/B4", "/history", "/lots", "/recipes", "/recipes/sensor",
	"/audit?unit=24:0a:c4:00:1f:01", "/station", "/help", "/barcodes",
}

// rules are the rules that hold without any library: contrast as WCAG 2.2, 1.4.3
// and 1.4.11 count it, names of what can be operated, and the frame of a page.
const rules = `(() => {
	const bad = [];
	const rgb = c => { const m = c.match(/[\d.]+/g).map(Number); return {r: m[0], g: m[1], b: m[2], a: m.length > 3 ? m[3] : 1}; };
	const lum = c => { const f = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
		return 0.2126 * f(c.r) + 0.7152 * f(c.g) + 0.0722 * f(c.b); };
	const ratio = (a, b) => { const x = lum(a), y = lum(b); return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05); };
	const back = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.a === 1) return c; if (c.a > 0) return null; } return {r: 255, g: 255, b: 255, a: 1}; };
	const shown = e => { const r = e.getBoundingClientRect(), s = getComputedStyle(e); return r.width > 1 && r.height > 1 && s.visibility !== "hidden" && s.clipPath === "none"; };
	let texts = 0;
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	for (let n; (n = walk.nextNode());) {
		if (!n.data.trim()) continue;
		const e = n.parentElement;
		if (!shown(e)) continue;
		const s = getComputedStyle(e), bg = back(e);
		if (!bg) { bad.push("half-transparent background: " + e.outerHTML.slice(0, 80)); continue; }
		texts++;
		const size = parseFloat(s.fontSize), large = size >= 24 || size >= 18.66 && s.fontWeight >= 700;
		const r = ratio(rgb(s.color), bg);
		if (r < (large ? 3 : 4.5)) bad.push("contrast " + r.toFixed(2) + ": " + n.data.trim().slice(0, 40) + " in ." + e.className);
		if (size < 11) bad.push(size + "px: " + n.data.trim().slice(0, 40));
	}
	for (const p of document.querySelectorAll(".tile svg.icon, .pill svg.icon")) {
		const r = ratio(rgb(getComputedStyle(p).color), back(p.parentElement));
		if (r < 3) bad.push("shape " + r.toFixed(2) + ": " + p.parentElement.textContent);
	}
	for (const p of document.querySelectorAll(".bars progress")) {
		const r = ratio(rgb(getComputedStyle(p).color), rgb(getComputedStyle(p).backgroundColor));
		if (r < 3) bad.push("bar " + r.toFixed(2));
	}
	for (const e of document.querySelectorAll("a, button, input, select, textarea, summary")) {
		if (!shown(e) || e.type === "hidden") continue;
		const name = e.getAttribute("aria-label") || e.textContent.trim() || [...(e.labels || [])].map(l => l.textContent.trim()).join(" ");
		if (!name) bad.push("no name: " + e.outerHTML.slice(0, 80));
		const r = e.getBoundingClientRect();
		if (e.tagName === "BUTTON" && (r.width < 24 || r.height < 24)) bad.push("target " + r.width + "×" + r.height + ": " + name);
	}
	const ids = new Set();
	for (const e of document.querySelectorAll("[id]")) { if (ids.has(e.id)) bad.push("twice: #" + e.id); ids.add(e.id); }
	if (document.querySelectorAll("h1").length !== 1) bad.push("headings of the first rank: " + document.querySelectorAll("h1").length);
	if (document.querySelectorAll("main").length !== 1) bad.push("no main");
	if (!document.documentElement.lang || !document.title) bad.push("no language or title");
	for (const t of document.querySelectorAll(".tile, .pill")) if (!t.querySelector("svg.icon") || !t.textContent.trim()) bad.push("colour alone: " + t.className);
	for (const e of document.querySelectorAll("progress")) if (!e.getAttribute("aria-label")) bad.push("a bar without name");
	if (texts < 5) bad.push("only " + texts + " texts were looked at");
	if (document.body.scrollWidth > innerWidth) bad.push("wider than the screen: " + document.body.scrollWidth);
	return bad.join("\n");
})()`

// TestAccessible holds every page, light and dark, against our rules.
func TestAccessible(t *testing.T) {
	eachPage(t, func(b *browser, where string) {
		bad, err := eval[string](b, rules)
		if err != nil || bad != "" {
			t.Errorf("%s: %v\n%s", where, err, bad)
		}
	})
	// The rules see what they look for.
	url, _ := serveOn(t, newServer(t, newDouble(4), func(o *web.Options) { o.Config.OpenBoard = true }), "127.0.0.1:0")
	b := newBrowser(t, url)
	b.open("/")
	b.wait(`document.querySelectorAll(".tile").length === 4`)
	bad, err := eval[string](b, `document.querySelector(".word span").style.color = "#ffc94d"; document.querySelector(".tile svg").remove(); `+rules)
	if err != nil || !bytes.Contains([]byte(bad), []byte("contrast")) || !bytes.Contains([]byte(bad), []byte("colour alone")) {
		t.Errorf("%v %q", err, bad)
	}
}

// TestAxe holds every page, light and dark, against axe-core.
func TestAxe(t *testing.T) {
	chromium(t)
	js := axe(t)
	eachPage(t, func(b *browser, where string) {
		if _, err := eval[chromedp.Void](b, js+"; null"); err != nil {
			t.Fatal(err)
		}
		ctx := b.ctx
		out, err := chromedp.Run(ctx, chromedp.Evaluate[string](`axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}).then(r =>
			JSON.stringify(r.violations.map(v => ({id: v.id, help: v.help, nodes: v.nodes.slice(0, 3).map(n => n.html.slice(0, 160) + " " + n.failureSummary)}))))`, chromedp.EvalAwaitPromise))
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		var found []struct {
			ID, Help string
			Nodes    []string
		}
		if err := json.Unmarshal([]byte(out), &found); err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			t.Errorf("%s: %s: %s\n%q", where, f.ID, f.Help, f.Nodes)
		}
	})
}

func eachPage(t *testing.T, look func(b *browser, where string)) {
	t.Helper()
	url, _ := serveOn(t, newServer(t, newDouble(16), nil), "127.0.0.1:0")
	b := newBrowser(t, url)
	for i, p := range allPages {
		if i == 2 {
			b.login("eve", "engineer's word")
		}
		for _, scheme := range []string{"light", "dark"} {
			b.scheme(scheme)
			b.open(p)
			look(b, p+" "+scheme)
		}
	}
}
