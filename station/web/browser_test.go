package web_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/provisiond/provisiond/station/web"
)

// chromium finds Debian's browser. On CI it has to be there; elsewhere the test is
// skipped, and the skip is counted by internal/check.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{os.Getenv("PROVISIOND_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"} {
		if name == "" {
			continue
		}
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs chromium, and CI must have it: .ci/run installs it")
	}
	t.Skip("needs chromium: apt-get install chromium, or name one in PROVISIOND_CHROMIUM")
	return ""
}

// browser is a tablet in front of a station.
type browser struct {
	t   *testing.T
	ctx context.Context
	url string
	out string // folder of the screenshots
}

// newBrowser starts Chromium with a screen of 1280 × 800. Whatever a page writes to
// the console as an error, a breach of the content security policy for example, is
// an error of the test.
func newBrowser(t *testing.T, url string) *browser {
	t.Helper()
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium(t)), chromedp.NoSandbox, chromedp.WindowSize(1280, 800),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("lang", "en"), chromedp.Flag("hide-scrollbars", true),
		chromedp.Flag("disable-component-update", true), chromedp.WSURLReadTimeout(60*time.Second))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{t: t, ctx: ctx, url: url, out: artefacts(t)}
	if err := chromedp.Do(ctx); err != nil { // starts it, without a time limit of its own
		t.Fatal(err)
	}
	if err := chromedp.Listen(ctx, func(ev any) {
		switch e := ev.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("exception in a page: %+v", e.ExceptionDetails)
		case *log.EventEntryAdded:
			// A stream that is cut, and a refused form, are what some tests want.
			if e.Entry.Source == log.EntrySourceNetwork {
				return
			}
			if e.Entry.Level == log.EntryLevelError || strings.Contains(e.Entry.Text, "Content Security Policy") {
				t.Errorf("the console says: %s %s", e.Entry.Text, e.Entry.URL)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	b.scheme("light")
	b.do(chromedp.EmulateViewport(1280, 800))
	return b
}

// scheme is what the device wishes: light or dark.
func (b *browser) scheme(s string) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: s}, {Name: "prefers-reduced-motion", Value: "reduce"}},
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// artefacts is where screenshots go: $PROVISIOND_ARTEFACTS, or the test's own
// folder, which `go test -artifacts` keeps.
func artefacts(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("PROVISIOND_ARTEFACTS")
	if dir == "" {
		return t.ArtifactDir()
	}
	dir = filepath.Join(dir, "screens")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// limit is how long one step may take, on a machine that does much else.
const limit = 30 * time.Second

func (b *browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, limit)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.fail(err.Error())
	}
}

func (b *browser) fail(why string) {
	b.t.Helper()
	b.shot("failed-" + strings.ReplaceAll(b.t.Name(), "/", "-"))
	text, _ := eval[string](b, `document.body.innerText`)
	b.t.Fatalf("%s; the page says:\n%s", why, text)
}

func eval[T any](b *browser, script string) (T, error) {
	ctx, cancel := context.WithTimeout(b.ctx, limit)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](script))
}

func (b *browser) click(css string) {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.CSS(css)))
}

func (b *browser) keys(css, text string) {
	b.t.Helper()
	b.do(chromedp.SendKeys(chromedp.CSS(css), text))
}

// scan types as a keyboard wedge does: to whatever has the focus.
func (b *browser) scan(text string) {
	b.t.Helper()
	b.do(chromedp.KeyEvent(text))
}

// open goes to a page. A page that loads itself anew at that moment, because the
// slots are others, makes the browser drop one of the two; then it goes again.
func (b *browser) open(path string) {
	b.t.Helper()
	for range 5 {
		ctx, cancel := context.WithTimeout(b.ctx, limit)
		err := chromedp.Do(ctx, chromedp.Navigate(b.url+path))
		cancel()
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "ERR_ABORTED") {
			b.fail(err.Error())
		}
	}
	b.fail("cannot open " + path)
}

// wait waits until a script is true.
func (b *browser) wait(script string) {
	b.t.Helper()
	// A page may go while it is asked, so it is asked from here.
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(limit)
	for {
		ok, err := eval[bool](b, script)
		if ok && err == nil {
			return
		}
		if time.Now().After(end) {
			b.fail("waited for " + script)
		}
		<-tick.C
	}
}

// see waits until an element holds a text.
func (b *browser) see(selector, text string) {
	b.t.Helper()
	b.wait(`[...document.querySelectorAll(` + quote(selector) + `)].some(e => e.textContent.includes(` + quote(text) + `))`)
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

func (b *browser) shot(name string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, limit)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Logf("no screenshot %s: %v", name, err)
		return
	}
	if err := os.WriteFile(filepath.Join(b.out, name+".png"), png, 0o644); err != nil {
		b.t.Error(err)
	}
}

func (b *browser) login(name, secret string) {
	b.t.Helper()
	b.open("/login?with=password")
	b.keys("input[name=name]", name)
	b.keys("input[name=secret]", secret+"\r")
	b.see(".person b", name)
}

// serveOn serves until the test ends, or until it is stopped.
func serveOn(t *testing.T, s *web.Server, addr string) (url string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l, nil) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return "http://" + l.Addr().String(), stop
}
