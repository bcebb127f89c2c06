package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station"
)

var (
	//go:embed templates/*.html
	templateFiles embed.FS
	//go:embed static/*
	staticFiles embed.FS
)

// loadPages parses the templates once for each language: the words are bound to
// them, so that a page cannot mix languages.
func loadPages(langs map[string]*lang) (map[string]*template.Template, error) {
	out := map[string]*template.Template{}
	for tag, l := range langs {
		t, err := template.New("").Funcs(template.FuncMap{
			"t": l.t, "word": l.word, "condition": l.condition, "secs": l.seconds, "pct": l.percent, "bytes": l.bytes,
			"clock": clock, "date": date, "hex": func(n any) string { return fmt.Sprintf("0x%x", n) },
			"asset": asset, "dict": dict, "short": short, "verdictState": verdictState, "sources": sources, "mac": splitMAC, "advisories": advisories, "languages": func() []string { return languages },
		}).ParseFS(templateFiles, "templates/*.html")
		if err != nil {
			return nil, err
		}
		out[tag] = t
	}
	return out, nil
}

// advisories lists what is known of a board's silicon; nothing for a board whose chip
// nobody has read yet.
func advisories(name, revision string) []chip.Advisory {
	m, err := chip.ByName(name)
	if err != nil {
		return nil
	}
	rev, err := chip.ParseRevision(revision)
	if err != nil {
		return nil
	}
	return m.Advisories(rev)
}

// dict makes a map for a template that calls another one.
func dict(kv ...any) (map[string]any, error) {
	if len(kv)%2 != 0 {
		return nil, errors.New("dict: a key without a value")
	}
	m := map[string]any{}
	for i := 0; i < len(kv); i += 2 {
		k, ok := kv[i].(string)
		if !ok {
			return nil, errors.New("dict: a key is no string")
		}
		m[k] = kv[i+1]
	}
	return m, nil
}

// splitMAC parts a MAC after its vendor's half, which a small tile leaves out.
func splitMAC(unit string) struct{ Vendor, Rest string } {
	const half = len("24:0a:c4:")
	if len(unit) <= half {
		return struct{ Vendor, Rest string }{"", unit}
	}
	return struct{ Vendor, Rest string }{unit[:half], unit[half:]}
}

// source is a choice of where serial numbers come from.
type source struct {
	Name string
	On   bool
}

func sources(chosen string) []source {
	var out []source
	for _, n := range []string{"none", "range", "list", "scan"} {
		out = append(out, source{n, n == chosen})
	}
	return out
}

// short is enough of a hash to compare it by eye.
func short(v any) string {
	s := fmt.Sprint(v)
	if len(s) > 16 {
		return s[:16] + "…"
	}
	return s
}

// verdictState is the state whose colour and shape a verdict has.
func verdictState(v provision.Verdict, c provision.Cause) station.SlotState {
	switch v {
	case provision.Pass:
		return station.SlotPass
	case provision.Fail:
		if c == provision.CauseRefused {
			return station.SlotRefused
		}
		return station.SlotFail
	case provision.Error:
		return station.SlotError
	case provision.Aborted:
		return station.SlotAborted
	case provision.Quarantined:
		return station.SlotQuarantined
	}
	return station.SlotMissing
}

// assets are the static files' hashes: a browser keeps a file for ever under the
// name with its hash.
var assets = sumAssets()

func sumAssets() map[string]string {
	m := map[string]string{}
	entries, err := staticFiles.ReadDir("static")
	if err != nil {
		panic(err) // it is part of the program
	}
	for _, e := range entries {
		b, err := staticFiles.ReadFile("static/" + e.Name())
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(b)
		m[e.Name()] = hex.EncodeToString(sum[:6])
	}
	return m
}

func asset(name string) (string, error) {
	h, ok := assets[name]
	if !ok {
		return "", fmt.Errorf("there is no file static/%s", name)
	}
	return "/static/" + name + "?" + h, nil
}

func (s *Server) static() http.Handler {
	files := http.FileServerFS(staticFiles)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/static/")
		h, ok := assets[name]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Cache-Control", "no-cache")
		if r.URL.RawQuery == h {
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		}
		files.ServeHTTP(w, r)
	})
}

func (s *Server) pageRoutes() []route {
	return []route{
		{"GET", "/{$}", actBoard, s.pageBoard},
		{"GET", "/events", actBoard, s.pageEvents},
		{"GET", "/login", "", s.pageLogin},
		{"POST", "/login", "", s.doLogin},
		{"POST", "/logout", "", s.doLogout},
		{"POST", "/prefs", "", s.doPrefs},
		{"GET", "/help", "", s.pageHelp},
		{"GET", "/station", actBoard, s.pageStation},
		{"GET", "/slots/{slot}", actBoard, s.pageSlot},
		{"POST", "/slots/{slot}/start", actStart, s.doStart},
		{"POST", "/slots/{slot}/abort", actAbort, s.doAbort},
		{"POST", "/slots/{slot}/clear", actClear, s.doClear},
		{"POST", "/scan", actScan, s.doScan},
		{"GET", "/history", actView, s.pageHistory},
		{"GET", "/lots", actView, s.pageLots},
		{"POST", "/lots", actOpenLot, s.doOpenLot},
		{"POST", "/lots/{lot}/close", actCloseLot, s.doCloseLot},
		{"GET", "/recipes", actRecipes, s.pageRecipes},
		{"GET", "/recipes/{recipe}", actRecipes, s.pageRecipe},
		{"GET", "/audit", actAudit, s.pageAudit},
		{"GET", "/units/{unit}/certificate", actCertificate, s.doCertificate},
		{"POST", "/units/{unit}/reprint", actReprint, s.doReprint},
		{"GET", "/barcodes", actScan, s.pageBarcodes},
	}
}

// page is what all pages and their forms have in common.
func (s *Server) page(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stream := rt.path == "/events"
		q := s.newRequest(w, r, !stream)
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Add("Vary", "Cookie, Accept-Language, HX-Request")
		if q.person == nil && !q.may(rt.action) {
			q.toLogin(stream)
			return
		}
		err := error(nil)
		if !q.may(rt.action) {
			err = newProblem(http.StatusForbidden, "role", q.lang.t("error.role"), q.lang.t("error.role.next"))
		} else {
			err = rt.handle(q)
		}
		if err != nil {
			q.fail(err)
		}
	})
}

// toLogin sends somebody to the door, and remembers where they wanted to go.
func (q *request) toLogin(stream bool) {
	to := "/login"
	if q.r.Method == http.MethodGet && !stream && q.r.URL.Path != "/" {
		to += "?next=" + url.QueryEscape(q.r.URL.RequestURI())
	}
	switch {
	case stream:
		// A browser asks again and again for a stream that answers with an error.
		q.w.Header().Set("Content-Type", "text/event-stream")
		_, _ = q.w.Write([]byte("event: reload\ndata:\n\n"))
	case q.hx():
		q.w.Header().Set("HX-Redirect", to)
	default:
		http.Redirect(q.w, q.r, to, http.StatusSeeOther)
	}
}

// hx reports whether htmx asks, and wants a part of a page.
func (q *request) hx() bool { return q.r.Header.Get("HX-Request") == "true" }

// fail shows an error: as a message on the page that asked, or as a page.
func (q *request) fail(err error) {
	p := q.s.asProblem(q.r, err)
	if p.retryAfter > 0 {
		q.w.Header().Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	if q.hx() {
		q.w.Header().Set("HX-Retarget", "#message")
		q.w.Header().Set("HX-Reswap", "innerHTML")
		q.w.Header().Set("HX-Trigger", "provisiond:close")
		q.render(p.Status, "message", map[string]any{"Problem": p})
		return
	}
	if err := q.show(p.Status, "page-error", "title.error", "", map[string]any{"Problem": p}); err != nil {
		writeProblem(q.w, p)
	}
}

// done ends a form that worked: with a message, or back on the page that it came
// from.
func (q *request) done(key, page string, args ...any) error {
	if q.hx() {
		q.w.Header().Set("HX-Retarget", "#message")
		q.w.Header().Set("HX-Reswap", "innerHTML")
		q.w.Header().Set("HX-Trigger", "provisiond:close")
		q.render(http.StatusOK, "message", map[string]any{"Text": q.lang.t(key, args...)})
		return nil
	}
	http.Redirect(q.w, q.r, page+"?"+url.Values{"done": {key}}.Encode(), http.StatusSeeOther) //nolint:gosec // page begins with a path of this server
	return nil
}

// confirmed asks before something that cannot be taken back. The first request
// shows the question; the answer carries confirm=yes. It works without scripts.
func (q *request) confirmed(question string, fields map[string]string, args ...any) (bool, error) {
	if q.r.PostFormValue("confirm") == "yes" {
		return true, nil
	}
	data := map[string]any{
		"Question": q.lang.t(question, args...), "Effect": q.lang.t(question + ".effect"), "Button": q.lang.t(question + ".button"),
		"Action": q.r.URL.Path, "Fields": fields, "Back": localPath(q.r.PostFormValue("back")), "Note": question == "confirm.clear",
	}
	if q.hx() {
		q.w.Header().Set("HX-Retarget", "#dialog")
		q.w.Header().Set("HX-Reswap", "innerHTML")
		q.render(http.StatusOK, "confirm", data)
		return false, nil
	}
	return false, q.show(http.StatusOK, "page-confirm", "title.confirm", "", data)
}

// render writes one template.
func (q *request) render(status int, name string, data any) {
	b, err := q.s.fragment(q.viewer, name, data)
	if err != nil {
		// A template that does not fit its data: a test renders all of them.
		q.s.log.Error("template failed")
		http.Error(q.w, "500", http.StatusInternalServerError)
		return
	}
	q.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	q.w.WriteHeader(status)
	_, _ = q.w.Write(b) //nolint:gosec // escaped by html/template, or JSON as a download; an error: whoever asked is gone
}

func (s *Server) fragment(v viewer, name string, data any) ([]byte, error) {
	var b bytes.Buffer
	err := s.pages[v.lang.tag].ExecuteTemplate(&b, name, data)
	return b.Bytes(), err
}

// pageData is what every page has.
type pageData struct {
	Lang, Theme string
	Title       string // key
	Nav         string
	Path        string
	Person      *station.Person
	Name        string // of the person, for the screen
	May         map[string]bool
	Status      statusData
	Since       string // where the page's stream begins
	Done        string // a message's key
	Body        any
	Content     template.HTML
}

// show renders a page.
func (q *request) show(status int, name, title, nav string, body any) error {
	f := q.s.feed.current()
	d := pageData{
		Lang: q.lang.tag, Theme: q.theme, Title: title, Nav: nav, Path: localPath(q.r.URL.RequestURI()),
		Person: q.person, Name: q.name, May: map[string]bool{}, Since: q.s.feed.id(f.rev), Body: body,
	}
	if q.r.Method != http.MethodGet {
		d.Path = "/"
	}
	for _, a := range actions {
		d.May[strings.ReplaceAll(string(a), "-", "_")] = q.may(a)
	}
	if q.may(actBoard) {
		d.Status = q.s.newStatus(f.view, q.viewer)
	} else {
		d.Status.View = station.View{Station: f.view.Station}
	}
	if k := q.r.URL.Query().Get("done"); strings.HasPrefix(k, "done.") && q.lang.words[k] != "" {
		d.Done = k
	}
	content, err := q.s.fragment(q.viewer, name, d)
	if err != nil {
		return err
	}
	d.Content = template.HTML(content) //nolint:gosec // it comes from html/template
	b, err := q.s.fragment(q.viewer, "layout", d)
	if err != nil {
		return err
	}
	q.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	q.w.WriteHeader(status)
	_, _ = q.w.Write(b) //nolint:gosec // escaped by html/template, or JSON as a download; an error: whoever asked is gone
	return nil
}

// statusData is the strip above the slots.
type statusData struct {
	View  station.View
	Wrong []station.Condition // what does not hold
	Full  bool                // the viewer sees lots and yield
}

func (s *Server) newStatus(v station.View, who viewer) statusData {
	d := statusData{View: v, Full: who.may(actBoard)}
	for _, c := range v.Conditions {
		if !c.OK {
			d.Wrong = append(d.Wrong, c)
		}
	}
	return d
}

// tileData is one slot for a template.
type tileData struct {
	Index    int
	S        station.SlotView
	Word     string
	Size     string // class by the length of the word
	CanStart bool
	CanAbort bool
	CanClear bool
	Percent  int // of the step
	Live     bool
}

func (s *Server) newTile(f *frame, i int, v viewer) tileData {
	slot := f.view.Slots[i]
	d := tileData{Index: i, S: slot, Word: v.lang.t("state." + string(slot.State))}
	d.Size = "n" + strconv.Itoa(min(max(wordWidth(d.Word), 4), 14))
	switch slot.State {
	case station.SlotReady, station.SlotWaiting:
		d.CanStart = v.may(actStart)
	case station.SlotBusy:
		d.CanAbort = v.may(actAbort)
	case station.SlotBlocked:
		d.CanClear = v.may(actClear)
	case station.SlotPass, station.SlotFail, station.SlotError, station.SlotAborted, station.SlotRefused, station.SlotQuarantined, station.SlotDone:
		d.CanStart = v.may(actStart) && slot.State != station.SlotPass && slot.State != station.SlotDone
	case station.SlotMissing:
	}
	if slot.Total > 0 {
		d.Percent = int(min(slot.Done, slot.Total) * 100 / slot.Total)
	}
	return d
}

// wordWidth counts a word in widths of a Latin capital; a Chinese sign is wider.
func wordWidth(s string) int {
	n := 0.0
	for _, r := range s {
		if r > 0x2e80 {
			n += 1.5
		} else {
			n++
		}
	}
	return int(n + 0.99)
}

// columns lays n tiles out on a wide screen, and on a tall one.
func columns(n int) (wide, tall int) {
	best := func(w, h float64) int {
		bestC, bestSize := 1, 0.0
		for c := 1; c <= max(n, 1); c++ {
			rows := (n + c - 1) / c
			tw, th := w/float64(c), h/float64(max(rows, 1))
			// A word of six letters and a shape: what of it fits into a tile.
			if size := min(tw/5, th/3); size > bestSize {
				bestC, bestSize = c, size
			}
		}
		return min(bestC, 16)
	}
	return best(1280, 620), best(800, 1080)
}

func (s *Server) pageBoard(q *request) error {
	f := s.feed.current()
	tiles := make([]template.HTML, len(f.view.Slots))
	for i := range f.view.Slots {
		html, err := s.tileHTML(f, i, q.viewer)
		if err != nil {
			return err
		}
		tiles[i] = html
	}
	wide, tall := columns(len(tiles))
	return q.show(http.StatusOK, "page-board", "title.board", "board", map[string]any{
		"Tiles": tiles, "Wide": wide, "Tall": tall, "Dense": len(tiles) > 24,
	})
}

func (q *request) slotTile() (tileData, error) {
	name := q.r.PathValue("slot")
	f := q.s.feed.current()
	i := slices.IndexFunc(f.view.Slots, func(v station.SlotView) bool { return v.Name == name })
	if i < 0 {
		return tileData{}, newProblem(http.StatusNotFound, "not-found", q.lang.t("error.slot", name), "")
	}
	return q.s.newTile(f, i, q.viewer), nil
}

func (s *Server) pageSlot(q *request) error {
	d, err := q.slotTile()
	if err != nil {
		return err
	}
	return q.show(http.StatusOK, "page-slot", "title.slot", "board", d)
}

func slotPath(name string) string { return "/slots/" + url.PathEscape(name) }

func (s *Server) doStart(q *request) error {
	slot, serial := q.r.PathValue("slot"), strings.TrimSpace(q.r.PostFormValue("serial"))
	if err := errors.Join(sized("slot", slot, maxName), sized("serial", serial, maxSerial)); err != nil {
		return err
	}
	if err := s.o.Station.StartUnit(q.r.Context(), q.by(), slot, serial); err != nil {
		return err
	}
	return q.done("done.start", slotPath(slot), slot)
}

func (s *Server) doAbort(q *request) error {
	slot := q.r.PathValue("slot")
	if err := sized("slot", slot, maxName); err != nil {
		return err
	}
	if ok, err := q.confirmed("confirm.abort", nil, slot); !ok {
		return err
	}
	if err := s.o.Station.AbortUnit(q.r.Context(), q.by(), slot); err != nil {
		return err
	}
	return q.done("done.abort", slotPath(slot), slot)
}

func (s *Server) doClear(q *request) error {
	slot, note := q.r.PathValue("slot"), strings.TrimSpace(q.r.PostFormValue("note"))
	if err := errors.Join(sized("slot", slot, maxName), sized("note", note, maxNote)); err != nil {
		return err
	}
	if ok, err := q.confirmed("confirm.clear", map[string]string{"note": note}, slot); !ok {
		return err
	}
	if err := s.o.Station.ClearSlot(q.r.Context(), q.by(), slot, note); err != nil {
		return err
	}
	return q.done("done.clear", slotPath(slot), slot)
}

const historyPage = 50

// historyQuery reads the filter of a history from a request's query.
func historyQuery(v url.Values) (station.HistoryQuery, error) {
	h := station.HistoryQuery{Lot: strings.TrimSpace(v.Get("lot")), Unit: strings.TrimSpace(v.Get("unit")), Limit: historyPage}
	if err := errors.Join(sized("lot", h.Lot, maxName), sized("unit", h.Unit, maxSerial)); err != nil {
		return h, err
	}
	if mac, ok := parseMAC(h.Unit); ok {
		h.Unit = mac
	}
	if s := v.Get("before"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return h, badInput("before is not a number")
		}
		h.Before = n
	}
	if s := v.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > 200 {
			return h, badInput("limit is not a number from 1 to 200")
		}
		h.Limit = n
	}
	if s := v.Get("verdict"); s != "" {
		h.Verdict = provision.Verdict(s)
		if !slices.Contains(verdicts, h.Verdict) {
			return h, badInput("verdict is none of PASS, FAIL, ERROR, ABORTED, QUARANTINED")
		}
	}
	return h, nil
}

var verdicts = []provision.Verdict{provision.Pass, provision.Fail, provision.Error, provision.Aborted, provision.Quarantined}

func (s *Server) pageHistory(q *request) error {
	h, err := historyQuery(q.r.URL.Query())
	if err != nil {
		return err
	}
	units, err := s.o.Station.History(q.r.Context(), h)
	if err != nil {
		return err
	}
	older := ""
	if len(units) == h.Limit && h.Limit > 0 {
		v := url.Values{"before": {strconv.FormatUint(units[len(units)-1].Index, 10)}}
		for k, s := range map[string]string{"lot": h.Lot, "unit": h.Unit, "verdict": string(h.Verdict)} {
			if s != "" {
				v.Set(k, s)
			}
		}
		older = "/history?" + v.Encode()
	}
	return q.show(http.StatusOK, "page-history", "title.history", "history", map[string]any{
		"Units": units, "Query": h, "Verdicts": verdicts, "Older": older,
	})
}

const lotsShown = 50

func (s *Server) pageLots(q *request) error {
	return s.showLots(q, http.StatusOK, station.LotRequest{ID: time.Now().Format("20060102-150405"), Serials: station.Serials{From: "none"}}, "", nil)
}

func (s *Server) showLots(q *request, status int, form station.LotRequest, list string, p *problem) error {
	lots, err := s.o.Station.Lots(q.r.Context(), lotsShown)
	if err != nil {
		return err
	}
	return q.show(status, "page-lots", "title.lots", "lots", map[string]any{
		"Lots": lots, "Recipes": s.o.Station.Recipes(), "Slots": s.feed.current().view.Slots, "Form": form, "List": list, "Problem": p,
	})
}

func (s *Server) doOpenLot(q *request) error {
	if err := q.r.ParseForm(); err != nil {
		return formError(err)
	}
	f := q.r.PostForm
	r := station.LotRequest{
		ID: strings.TrimSpace(f.Get("id")), Recipe: f.Get("recipe"), Slots: f["slots"], Forever: f.Get("forever") == "yes",
		Serials: station.Serials{From: f.Get("serials"), First: strings.TrimSpace(f.Get("first"))},
	}
	list := f.Get("list")
	switch r.Serials.From {
	case "range":
	case "list":
		r.Serials.First, r.Serials.List = "", strings.Fields(list)
	default:
		r.Serials.First = ""
	}
	err := func() error {
		n, err := strconv.Atoi(strings.TrimSpace(f.Get("quantity")))
		if err != nil || n < 1 {
			return badInput(q.lang.t("error.quantity"))
		}
		r.Quantity = n
		return checkLot(r)
	}()
	if err == nil {
		_, err = s.o.Station.OpenLot(q.r.Context(), q.by(), r)
	}
	if err != nil {
		p := s.asProblem(q.r, err)
		if p.Status >= http.StatusInternalServerError {
			return err
		}
		return s.showLots(q, p.Status, r, list, p)
	}
	return q.done("done.open-lot", "/lots")
}

// formError tells a body that is too large from one that cannot be read.
func formError(err error) error {
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return err
	}
	return badInput("the form cannot be read")
}

// Most serial numbers and slots in a request, and most units in a lot.
const (
	maxSerials  = 20000
	maxQuantity = 1_000_000
	maxSlots    = 1024
)

// checkLot holds a lot's request to what can be written down; the station checks
// what it means.
func checkLot(r station.LotRequest) error {
	if r.Quantity < 1 || r.Quantity > maxQuantity {
		return badInput(fmt.Sprintf("quantity is not a number from 1 to %d", maxQuantity))
	}
	if len(r.Serials.List) > maxSerials || len(r.Slots) > maxSlots {
		return badInput(fmt.Sprintf("at most %d serial numbers and %d slots are taken", maxSerials, maxSlots))
	}
	errs := []error{
		sized("id", r.ID, maxName), sized("recipe", r.Recipe, maxName), sized("serials.from", r.Serials.From, maxName),
		sized("serials.first", r.Serials.First, maxSerial),
	}
	for _, s := range r.Serials.List {
		errs = append(errs, sized("serials.list", s, maxSerial))
	}
	for _, s := range r.Slots {
		errs = append(errs, sized("slots", s, maxName))
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) doCloseLot(q *request) error {
	id := q.r.PathValue("lot")
	if err := sized("lot", id, maxName); err != nil {
		return err
	}
	if ok, err := q.confirmed("confirm.close-lot", nil, id); !ok {
		return err
	}
	if err := s.o.Station.CloseLot(q.r.Context(), q.by(), id); err != nil {
		return err
	}
	if q.hx() {
		q.w.Header().Set("HX-Redirect", "/lots?done=done.close-lot")
		return nil
	}
	return q.done("done.close-lot", "/lots")
}

func (s *Server) pageRecipes(q *request) error {
	return q.show(http.StatusOK, "page-recipes", "title.recipes", "recipes", map[string]any{"Recipes": s.o.Station.Recipes()})
}

func (s *Server) pageRecipe(q *request) error {
	name := q.r.PathValue("recipe")
	rs := s.o.Station.Recipes()
	i := slices.IndexFunc(rs, func(r station.RecipeView) bool { return r.Name == name })
	if i < 0 {
		return newProblem(http.StatusNotFound, "not-found", q.lang.t("error.recipe"), "")
	}
	plan, err := s.o.Station.Plan(q.r.Context(), name)
	if err != nil {
		return err
	}
	return q.show(http.StatusOK, "page-plan", "title.plan", "recipes", map[string]any{"Recipe": rs[i], "Plan": plan, "New": newBits(plan), "Stages": planStages(plan)})
}

type planStage struct {
	Name string
	Bits []planBit
}

type planBit struct {
	Field, Where, Note string
	Count              int // 0: the key as a whole
	Set                bool
}

// planStages gathers a plan's bits by stage and field, so that a field of 256 bits is
// one line.
func planStages(p *provision.PlanReport) []planStage {
	var out []planStage
	for _, name := range p.Stages {
		st := planStage{Name: name}
		for _, b := range p.Bits {
			if b.Stage != name {
				continue
			}
			field := b.Field
			if field == "" {
				field = b.Block
			}
			if n := len(st.Bits); n > 0 {
				last := &st.Bits[n-1]
				if last.Field == field && last.Set == b.AlreadySet && last.Note == b.Note {
					last.Count++
					continue
				}
			}
			line := planBit{Field: field, Where: fmt.Sprintf("%s %d.%d", b.Block, b.Word, b.Bit), Note: b.Note, Count: 1, Set: b.AlreadySet}
			if b.Bit < 0 { // the key as a whole
				line.Where, line.Count = b.Block, 0
			}
			st.Bits = append(st.Bits, line)
		}
		out = append(out, st)
	}
	return out
}

// newBits counts what is burned, without the key.
func newBits(p *provision.PlanReport) int {
	n := 0
	for _, b := range p.Bits {
		if !b.AlreadySet && b.Bit >= 0 {
			n++
		}
	}
	return n
}

func (s *Server) pageAudit(q *request) error {
	unit := strings.TrimSpace(q.r.URL.Query().Get("unit"))
	if err := sized("unit", unit, maxSerial); err != nil {
		return err
	}
	if mac, ok := parseMAC(unit); ok {
		unit = mac
	}
	body := map[string]any{"Unit": unit}
	if unit != "" {
		units, err := s.o.Station.History(q.r.Context(), station.HistoryQuery{Unit: unit, Limit: historyPage})
		if err != nil {
			return err
		}
		body["Units"] = units
		if len(units) > 0 {
			body["MAC"] = units[0].Unit
			body["File"] = certificateName(units[0].Unit)
		}
	}
	return q.show(http.StatusOK, "page-audit", "title.audit", "audit", body)
}

// certificateName is the file that a browser saves.
func certificateName(unit string) string {
	return "certificate-" + strings.ReplaceAll(unit, ":", "") + ".json"
}

// unitName takes a base MAC only: it becomes a part of a file's name.
func (q *request) unitName() (string, error) {
	mac, ok := parseMAC(q.r.PathValue("unit"))
	if !ok {
		return "", badInput("unit is no MAC address; write 24:0a:c4:00:00:01")
	}
	return mac, nil
}

func (s *Server) doCertificate(q *request) error {
	unit, err := q.unitName()
	if err != nil {
		return err
	}
	b, err := s.o.Station.Certificate(q.r.Context(), unit)
	if err != nil {
		return err
	}
	q.w.Header().Set("Content-Type", "application/json")
	q.w.Header().Set("Content-Disposition", `attachment; filename="`+certificateName(unit)+`"`)
	_, _ = q.w.Write(b) //nolint:gosec // escaped by html/template, or JSON as a download; an error: whoever asked is gone
	return nil
}

func (s *Server) doReprint(q *request) error {
	unit, err := q.unitName()
	if err != nil {
		return err
	}
	if err := s.o.Station.Reprint(q.r.Context(), q.by(), unit); err != nil {
		return err
	}
	return q.done("done.reprint", "/audit", unit)
}

func (s *Server) pageStation(q *request) error {
	return q.show(http.StatusOK, "page-station", "title.station", "station", s.feed.current().view)
}

func (s *Server) pageHelp(q *request) error {
	return q.show(http.StatusOK, "page-help", "title.help", "help", map[string]any{"States": station.SlotStates(), "Codes": scanCodes})
}

func (s *Server) doPrefs(q *request) error {
	const year = 365 * 24 * 3600
	if v := q.r.PostFormValue("lang"); v != "" {
		if !slices.Contains(languages, v) {
			return badInput("there is no such language")
		}
		s.setCookie(q.w, q.r, langCookie, v, year)
	}
	if v := q.r.PostFormValue("theme"); v != "" {
		if !slices.Contains([]string{"auto", "light", "dark"}, v) {
			return badInput("there is no such theme")
		}
		s.setCookie(q.w, q.r, themeCookie, v, year)
	}
	http.Redirect(q.w, q.r, localPath(q.r.PostFormValue("next")), http.StatusSeeOther) //nolint:gosec // localPath: a path of this server
	return nil
}
