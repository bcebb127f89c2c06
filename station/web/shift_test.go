package web_test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/web"
)

// line is what a shift works at: the double, or a daemon somewhere else.
//
//	provisiond demo --serve --slots 8 --listen 127.0.0.1:8080 &
//	PROVISIOND_SHIFT_URL=http://127.0.0.1:8080 PROVISIOND_SHIFT_OPERATOR=operator PROVISIOND_SHIFT_PIN=… \
//	PROVISIOND_SHIFT_ENGINEER=engineer PROVISIOND_SHIFT_PASSWORD=… go test -run TestShift ./station/web
//
// runs the same shift there. Its boards come and pass by themselves; a lot is
// opened if PROVISIOND_SHIFT_RECIPE names its recipe, and a failure is waited for if
// PROVISIOND_SHIFT_FAILS is set.
type line struct {
	url, badge, operator, pin, engineer, password, recipe string

	fails bool

	// What the double is told, and a real station does by itself; nil there.
	start   func()
	pass    func()
	fail    func()
	block   func()
	restart func()
}

func env(name, usual string) string {
	if v := os.Getenv("PROVISIOND_SHIFT_" + name); v != "" {
		return v
	}
	return usual
}

func newLine(t *testing.T) *line {
	l := &line{
		url: env("URL", ""), badge: env("BADGE", "4711"), operator: env("OPERATOR", ""), pin: env("PIN", ""), engineer: env("ENGINEER", "eve"),
		password: env("PASSWORD", "engineer's word"), recipe: env("RECIPE", ""), fails: env("FAILS", "") != "",
	}
	if l.url != "" {
		return l
	}
	l.recipe, l.fails = "sensor", true
	d := newDouble(8)
	d.view.Lots = nil
	d.lots = nil
	for i := range d.view.Slots {
		d.view.Slots[i] = slotIn(i, d.view.Slots[i].Name, station.SlotReady)
	}
	people := newCrowd()
	serve := func(addr string) (string, func()) {
		return serveOn(t, newServer(t, d, func(o *web.Options) { o.People = people }), addr)
	}
	url, stop := serve("127.0.0.1:0")
	l.url = url
	put := func(slot string, state station.SlotState) {
		d.set(slot, func(s *station.SlotView) { *s = slotIn(2, slot, state) })
	}
	l.start = func() { put("A1", station.SlotBusy); put("A2", station.SlotBusy) }
	l.pass = func() { put("A1", station.SlotPass) }
	l.fail = func() { put("A2", station.SlotFail) }
	l.block = func() { put("A4", station.SlotBlocked) }
	l.restart = func() {
		stop()
		_, stop = serve(strings.TrimPrefix(url, "http://"))
	}
	return l
}

func do(f func()) {
	if f != nil {
		f()
	}
}

// TestShift clicks through a shift: an engineer opens a lot, an operator works and
// scans, a unit passes and one fails, a slot is cleared, somebody reads the
// history, in another language and in the dark; a page is loaded again in the
// middle, and the station is restarted under it.
func TestShift(t *testing.T) {
	l := newLine(t)
	b := newBrowser(t, l.url)

	// Whoever is not in sees the door only. A wrong password says so.
	b.open("/history")
	b.see("h1", "Log in")
	b.shot("shift-01-login")
	b.open("/login?with=password")
	b.keys("input[name=name]", l.engineer)
	b.keys("input[name=secret]", "not it\r")
	b.see(".note.bad", "is not right")
	b.keys("input[name=secret]", l.password+"\r")
	b.see(".person small", "Engineer")

	// A lot.
	if l.recipe != "" {
		l.openLot(t, b)
	}

	// The operator takes over by one scan at the board.
	b.open("/")
	if l.pin == "" {
		b.scan("BADGE:" + l.badge + "\r")
	} else {
		b.open("/login")
		b.click("summary")
		b.keys("details input[name=name]", l.operator)
		b.keys("details input[name=secret]", l.pin+"\r")
	}
	b.see(".person small", "Operator")
	b.wait(`document.activeElement.id === "scan"`)

	// Units: one in work, one passes, one fails. The page is not touched for it.
	do(l.start)
	b.wait(`document.querySelector(".tile.s-busy progress.bar-all") !== null`)
	b.shot("shift-03-busy")
	do(l.pass)
	b.see(".tile.s-pass .word", "PASS")
	worst := "pass"
	if l.fails {
		do(l.fail)
		b.see(".tile.s-fail .word", "FAIL")
		worst = "fail"
	}
	b.shot("shift-04-pass-fail")

	// The scanner: focus stays, Enter and Tab end a code, and what is typed while
	// nothing has the focus is a scan.
	first, err := eval[string](b, `document.querySelector(".tile h2 a").textContent`)
	if err != nil {
		t.Fatal(err)
	}
	b.scan("SLOT:" + first + "\r")
	b.see("#scan-result", first)
	b.scan("slot:" + first + "\t")
	b.wait(`document.getElementById("scan").value === "" && document.activeElement.id === "scan"`)
	b.click("#status")
	b.wait(`document.activeElement.id === "scan"`)
	if _, err := eval[chromedp.Void](b, `document.activeElement.blur(); null`); err != nil {
		t.Fatal(err)
	}
	b.scan("CMD:SCRAP\r")
	b.see("#scan-result .warn", "CMD:YES")
	b.shot("shift-05-scan-confirm")
	b.scan("CMD:NO\r")
	b.see("#scan-result", "Nothing was done")

	// Loaded again in the middle of it.
	b.do(chromedp.Reload())
	b.see(".tile .word", strings.ToUpper(worst))

	// Why it failed, and what to do.
	if l.fails {
		b.click(".tile.s-fail h2 a")
		b.see(".slot-head .next", "Next:")
	} else {
		b.click(".tile h2 a")
		b.see(".facts dt", "Key fingerprint")
	}
	b.shot("shift-06-slot")
	b.open("/history?verdict=" + strings.ToUpper(worst))
	b.see(".pill", strings.ToUpper(worst))
	if l.fails {
		b.see("td.why", "Next:")
	}
	b.shot("shift-07-history")

	// The language, and the dark.
	b.open("/")
	b.click("button[name=lang][value=de]")
	b.see(".tile.s-pass .word", "IO")
	b.shot("shift-08-german")
	b.click("button[name=lang][value=zh]")
	b.see(".tile.s-pass .word", "合格")
	b.click("button[name=theme][value=dark]")
	b.wait(`document.documentElement.dataset.theme === "dark"`)
	b.shot("shift-09-chinese-dark")
	b.click("button[name=lang][value=en]")
	b.see(".tile.s-pass .word", "PASS")
	b.click("button[name=theme][value=auto]")
	b.wait(`document.documentElement.dataset.theme === "auto"`)
	b.scheme("dark")
	b.wait(`getComputedStyle(document.body).backgroundColor === "rgb(14, 20, 25)"`)
	b.scheme("light")
	b.wait(`getComputedStyle(document.body).backgroundColor === "rgb(238, 241, 244)"`)

	// A slot that was set aside. An operator cannot clear it, an engineer can, after a
	// question.
	if l.block != nil {
		l.block()
		b.see(".tile.s-blocked .word", "LOCKED")
		b.open("/slots/A4")
		b.see(".slot-head .word", "LOCKED")
		if n, err := eval[int](b, `document.querySelectorAll("form[action$=clear]").length`); err != nil || n != 0 {
			t.Errorf("an operator is offered to clear: %d %v", n, err)
		}
		b.login(l.engineer, l.password)
		b.open("/slots/A4")
		b.click("form[action$=clear] button")
		b.wait(`document.getElementById("dialog").open`)
		b.see("#dialog h2", "Clear slot A4?")
		b.shot("shift-10-confirm")
		b.click("#dialog [data-close]")
		b.wait(`!document.getElementById("dialog").open`)
		b.click("form[action$=clear] button")
		b.wait(`document.getElementById("dialog").open`)
		b.keys("#dialog input[name=note]", "new cable")
		b.click("#dialog button.danger")
		b.see("#message .good", "Slot A4 is cleared")
		b.see(".slot-head .word", "READY")
	}

	// The station goes away under the page, which says so, and comes back by itself.
	if l.restart != nil {
		b.open("/")
		b.see(".tile.s-pass .word", "PASS")
		if _, err := eval[bool](b, `window.before = true`); err != nil {
			t.Fatal(err)
		}
		l.restart()
		b.wait(`window.before === undefined && document.querySelector(".tile.s-pass") !== null && document.getElementById("offline").hidden`)
		l.pass()
		b.see(".tile.s-pass .word", "PASS")
	}

	b.click("form[action='/logout'] button")
	b.see("h1", "Log in")
}

func (l *line) openLot(t *testing.T, b *browser) {
	t.Helper()
	b.open("/lots")
	b.wait(`document.querySelector("details").open || (document.querySelector("summary").click(), false)`)
	if _, err := eval[chromedp.Void](b, `document.querySelector("input[name=id]").value = ""; null`); err != nil {
		t.Fatal(err)
	}
	b.keys("input[name=id]", "SHIFT-1")
	b.keys("input[name=quantity]", "50")
	b.click("input[name=recipe][value=" + l.recipe + "]")
	b.click("input[name=forever]")
	b.shot("shift-02-lot")
	b.click("form.grid button.go")
	b.see("#message .good", "The lot is open")
	b.see("td", "SHIFT-1")
	b.open("/")
	b.see("#status .lot-id", "SHIFT-1")
}

// TestCut: while the station is away, the page says that what it shows may be old.
func TestCut(t *testing.T) {
	s := newServer(t, newDouble(4), func(o *web.Options) { o.Config.OpenBoard = true })
	url, stop := serveOn(t, s, "127.0.0.1:0")
	b := newBrowser(t, url)
	b.open("/")
	b.see(".tile.s-pass .word", "PASS")
	b.wait(`document.getElementById("offline").hidden`)
	stop()
	b.wait(`!document.getElementById("offline").hidden && document.body.classList.contains("stale")`)
	b.shot("cut")
}

// TestEveryWordFits: the word of every state is inside its tile, in every language,
// from 4 to 64 slots.
func TestEveryWordFits(t *testing.T) {
	d := newDouble(1)
	d.view.Slots = nil
	for i, st := range station.SlotStates() {
		s := slotIn(i, slotName(i), st)
		d.view.Slots = append(d.view.Slots, s)
	}
	all := d.view.Slots
	url, _ := serveOn(t, newServer(t, d, func(o *web.Options) { o.Config.OpenBoard = true }), "127.0.0.1:0")
	b := newBrowser(t, url)
	for _, n := range []int{4, 12, 36, 64} {
		var slots []station.SlotView
		for i := range n {
			s := all[i%len(all)]
			s.Name = slotName(i)
			slots = append(slots, s)
		}
		b.do(chromedp.Navigate("about:blank")) // a page with other slots would load itself again
		d.edit(func(v *station.View) { v.Slots = slots })
		for _, lang := range []string{"en", "de", "zh"} {
			b.open("/")
			if _, err := eval[bool](b, `window.before = true`); err != nil {
				t.Fatal(err)
			}
			b.click("button[name=lang][value=" + lang + "]")
			b.wait(`window.before === undefined && document.readyState === "complete" && document.documentElement.lang === "` + lang + `" && document.querySelectorAll(".tile").length === ` + strconv.Itoa(n))
			// A word that is wider than its tile, or that covers what is below it, is not readable
			// from three metres.
			bad, err := eval[string](b, `[...document.querySelectorAll(".tile")].map(t => {
				const box = t.getBoundingClientRect(), w = t.querySelector(".word span").getBoundingClientRect();
				const cap = parseFloat(getComputedStyle(t.querySelector(".word")).fontSize);
				if (w.right > box.right + 0.5 || w.bottom > box.bottom + 0.5) return t.className + ": " + w.right + "," + w.bottom + " of " + box.right + "," + box.bottom;
				const min = {4: 80, 12: 34, 36: 20, 64: 16}[`+strconv.Itoa(n)+`];
				if (cap < min) return t.className + ": " + cap + "px";
				return "";
			}).filter(x => x).join("\n")`)
			if err != nil || bad != "" {
				b.shot("word-" + lang + "-" + strconv.Itoa(n))
				t.Errorf("%d slots in %s: %v\n%s", n, lang, err, bad)
			}
			// PASS and FAIL are what has to be read from three metres: a letter of 4.4 mm is five
			// minutes of arc there, and 1280 pixels are 217 mm on a tablet of ten inches.
			const px = 4.4 / 217 * 1280
			small, err := eval[float64](b, `Math.min(...[...document.querySelectorAll(".tile.s-pass .word, .tile.s-fail .word")].map(w => parseFloat(getComputedStyle(w).fontSize)))`)
			capital := 0.72 * small
			if lang == "zh" {
				capital = 0.9 * small
			}
			if want := map[bool]float64{true: px, false: px * 0.75}[n <= 36]; err != nil || capital < want {
				t.Errorf("%d slots in %s: PASS and FAIL have letters of %.0f px, want %.0f", n, lang, capital, want)
			}
		}
	}
}

func slotName(i int) string { return string(rune('A'+i/8)) + strconv.Itoa(i%8+1) }
