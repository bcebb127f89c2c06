package report

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"codeberg.org/go-pdf/fpdf"

	"github.com/provisiond/provisiond/provision"
)

// Measures of the page in millimetres: A4, upright.
const (
	pageWidth  = 210.0
	pageMargin = 15.0
	textWidth  = pageWidth - 2*pageMargin
	pageBottom = 297.0 - 18.0 // the footer begins below
)

type rgb struct{ r, g, b int }

var (
	inkDark  = rgb{34, 45, 58}
	inkGrey  = rgb{110, 118, 128}
	lineGrey = rgb{205, 210, 216}
	paleGrey = rgb{244, 246, 248}
	inkBlue  = rgb{38, 99, 172}
)

// stateInk is the colour of a state. Every use has its name beside it: colour
// alone tells nothing.
var stateInk = map[State]rgb{
	State(provision.Pass): {46, 139, 87}, State(provision.Fail): {200, 52, 52}, State(provision.Error): {226, 125, 38},
	State(provision.Aborted): {150, 130, 175}, State(provision.Quarantined): {120, 40, 90}, Refused: {140, 147, 156}, Open: {90, 150, 190},
}

// sheetPDF draws. All texts go through tr: the built-in fonts know Windows-1252.
type sheetPDF struct {
	*fpdf.Fpdf
	tr  func(string) string
	lot *Lot
}

// PDF is the report on A4 pages.
func (l *Lot) PDF() ([]byte, error) {
	f := fpdf.New("P", "mm", "A4", "")
	p := &sheetPDF{Fpdf: f, tr: f.UnicodeTranslatorFromDescriptor(""), lot: l}
	created := l.created.UTC()
	if created.IsZero() {
		created = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // a report of nothing has no date
	}
	f.SetCreationDate(created)
	f.SetModificationDate(created)
	f.SetCatalogSort(true)
	f.SetProducer("provisiond", true)
	f.SetCreator("provisiond", true)
	f.SetTitle("Production report: "+l.name(), true)
	f.SetLang("en")
	f.SetMargins(pageMargin, pageMargin, pageMargin)
	f.SetAutoPageBreak(false, 0)
	f.SetCellMargin(0)
	f.AliasNbPages("")
	f.SetHeaderFunc(p.header)
	f.SetFooterFunc(p.footer)
	f.AddPage()
	p.front()
	p.plots()
	p.reasons()
	p.serials()
	p.units()
	var out bytes.Buffer
	if err := f.Output(&out); err != nil {
		return nil, fmt.Errorf("report: pdf: %w", err)
	}
	return out.Bytes(), nil
}

func (p *sheetPDF) ink(c rgb)  { p.SetTextColor(c.r, c.g, c.b) }
func (p *sheetPDF) fill(c rgb) { p.SetFillColor(c.r, c.g, c.b) }
func (p *sheetPDF) pen(c rgb)  { p.SetDrawColor(c.r, c.g, c.b) }

// put writes one line of text into a box, cut with an ellipsis if it is too long.
func (p *sheetPDF) put(x, y, w, h float64, align, s string) {
	p.SetXY(x, y)
	p.CellFormat(w, h, p.cut(s, w), "", 0, align, false, 0, "")
}

func (p *sheetPDF) cut(s string, w float64) string {
	t := p.tr(s)
	if p.GetStringWidth(t) <= w {
		return t
	}
	dots := p.tr("…")
	for len(t) > 0 && p.GetStringWidth(t+dots) > w {
		t = t[:len(t)-1] // one byte is one character here
	}
	return t + dots
}

// ending cuts the beginning of a text that is too long: numbers count up at the end.
func (p *sheetPDF) ending(s string, w float64) string {
	r := []rune(s)
	if p.GetStringWidth(p.tr(s)) <= w {
		return s
	}
	for len(r) > 0 && p.GetStringWidth(p.tr("…"+string(r))) > w {
		r = r[1:]
	}
	return "…" + string(r)
}

// wrap breaks a text into lines for a width.
func (p *sheetPDF) wrap(s string, w float64) []string {
	var out []string
	for _, line := range p.SplitLines([]byte(p.tr(s)), w) {
		out = append(out, strings.TrimRight(string(line), " \n\r"))
	}
	if len(out) == 0 {
		out = []string{""}
	}
	return out
}

// lines writes what wrap gave.
func (p *sheetPDF) lines(x, y, w, h float64, lines []string) {
	for i, s := range lines {
		p.SetXY(x, y+float64(i)*h)
		p.CellFormat(w, h, s, "", 0, "L", false, 0, "")
	}
}

func (p *sheetPDF) header() {
	if p.PageNo() == 1 {
		return
	}
	p.SetFont("Helvetica", "", 8)
	p.ink(inkGrey)
	p.put(pageMargin, 9, textWidth/2, 4, "L", "Production report: "+p.lot.name())
	p.put(pageMargin+textWidth/2, 9, textWidth/2, 4, "R", strings.Join(p.lot.Stations, ", "))
	p.pen(lineGrey)
	p.SetLineWidth(0.2)
	p.Line(pageMargin, 13.5, pageWidth-pageMargin, 13.5)
	p.SetXY(pageMargin, 18)
}

func (p *sheetPDF) footer() {
	p.pen(lineGrey)
	p.SetLineWidth(0.2)
	p.Line(pageMargin, 283, pageWidth-pageMargin, 283)
	p.SetFont("Helvetica", "", 8)
	p.ink(inkGrey)
	p.put(pageMargin, 284.5, 130, 4, "L", "provisiond, from journal entries of "+day(p.lot.First)+" to "+day(p.lot.Last)+" (UTC)")
	p.SetXY(pageWidth-pageMargin-40, 284.5)
	p.CellFormat(40, 4, fmt.Sprintf("Page %d of {nb}", p.PageNo()), "", 0, "R", false, 0, "")
}

func day(s string) string {
	if len(s) < 10 {
		return "-"
	}
	return s[:10]
}

func minute(s string) string {
	if len(s) < 16 {
		return "-"
	}
	return s[:10] + " " + s[11:16]
}

// room makes sure that a block of height h fits, on a new page if need be.
func (p *sheetPDF) room(h float64) {
	if p.GetY()+h > pageBottom {
		p.AddPage()
		p.SetXY(pageMargin, 18)
	}
}

func (p *sheetPDF) heading(s string) {
	p.SetFont("Helvetica", "B", 11)
	p.ink(inkDark)
	p.put(pageMargin, p.GetY(), textWidth, 6, "L", s)
	p.SetXY(pageMargin, p.GetY()+7)
}

func (p *sheetPDF) front() {
	l := p.lot
	p.fill(inkDark)
	p.Rect(0, 0, pageWidth, 32, "F")
	p.SetTextColor(255, 255, 255)
	p.SetFont("Helvetica", "", 10)
	p.put(pageMargin, 8, textWidth, 5, "L", "Production report")
	p.SetFont("Helvetica", "B", 20)
	title := l.name()
	p.put(pageMargin, 14, textWidth, 10, "L", strings.ToUpper(title[:1])+title[1:]) // it begins with a or l

	if l.Counts.Units == 0 && l.Simulated.Units > 0 {
		p.SetFont("Helvetica", "B", 10)
		p.put(pageMargin, 8, textWidth, 5, "R", "SIMULATED UNITS ONLY")
	}

	y := 38.0
	for _, f := range [][2]string{
		{"Station", none(strings.Join(l.Stations, ", "))},
		{"Operator", none(strings.Join(l.Operators, ", "))},
		{"Recipe", none(strings.Join(l.Recipes, ", "))},
		{"Begun", minute(l.First) + " UTC"},
		{"Last entry", minute(l.Last) + " UTC"},
		{"Made with", none(strings.Join(l.Tools, ", "))},
	} {
		p.SetFont("Helvetica", "", 9)
		p.ink(inkGrey)
		p.put(pageMargin, y, 24, 5, "L", f[0])
		p.ink(inkDark)
		lines := p.wrap(f[1], textWidth-24)
		if len(lines) > 3 {
			lines = append(lines[:2], lines[2]+p.tr(" …"))
		}
		p.lines(pageMargin+24, y, textWidth-24, 5, lines)
		y += 5 * float64(len(lines))
	}
	y += 3
	y = p.tiles(y)
	y = p.outcome(y)
	p.SetXY(pageMargin, y)
}

func none(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// tiles are the figures that everybody looks for first.
func (p *sheetPDF) tiles(y float64) float64 {
	l := p.lot
	ordered := fmt.Sprintf("%d", l.Counts.Units)
	under := "units begun"
	if l.Ordered > 0 {
		under = fmt.Sprintf("units begun, %d ordered", l.Ordered)
	}
	percent := func(y Yield) string {
		if y.Of == 0 {
			return "-"
		}
		return y.Percent + " %"
	}
	tiles := []struct{ big, small string }{
		{ordered, under},
		{percent(l.Final), fmt.Sprintf("final yield, %d of %d", l.Final.Units, l.Final.Of)},
		{percent(l.FirstPass), fmt.Sprintf("first-pass yield, %d of %d", l.FirstPass.Units, l.FirstPass.Of)},
		{seconds(l.Cycle.P50MS, l.Cycle.Units), "median cycle time"},
	}
	const gap = 4.0
	w := (textWidth - gap*float64(len(tiles)-1)) / float64(len(tiles))
	for i, t := range tiles {
		x := pageMargin + float64(i)*(w+gap)
		p.fill(paleGrey)
		p.RoundedRect(x, y, w, 20, 1.5, "1234", "F")
		p.SetFont("Helvetica", "B", 17)
		p.ink(inkDark)
		p.put(x+3, y+3, w-6, 8, "L", t.big)
		p.SetFont("Helvetica", "", 8)
		p.ink(inkGrey)
		p.put(x+3, y+12.5, w-6, 4, "L", t.small)
	}
	return y + 25
}

func seconds(ms int64, units int) string {
	if units == 0 {
		return "-"
	}
	return fmt.Sprintf("%d.%02d s", ms/1000, ms%1000/10)
}

// outcome is a bar of all units by what became of them, with its legend.
func (p *sheetPDF) outcome(y float64) float64 {
	l := p.lot
	if l.Counts.Units > 0 {
		x := pageMargin
		for _, s := range states {
			w := textWidth * float64(*l.Counts.of(s)) / float64(l.Counts.Units)
			if w > 0 {
				p.fill(stateInk[s])
				p.Rect(x, y, w, 5, "F")
				x += w
			}
		}
	} else {
		p.fill(paleGrey)
		p.Rect(pageMargin, y, textWidth, 5, "F")
	}
	y += 7.5
	w := textWidth / 4
	legend := func(i int, c rgb, label string, n int) {
		x, at := pageMargin+float64(i%4)*w, y+float64(i/4)*5
		p.fill(c)
		p.Rect(x, at+1, 3, 3, "F")
		p.SetFont("Helvetica", "", 9)
		p.ink(inkGrey)
		p.put(x+4.5, at, w-20, 5, "L", label)
		p.SetFont("Helvetica", "B", 9)
		p.ink(inkDark)
		p.put(x+w-16, at, 12, 5, "R", fmt.Sprint(n))
	}
	for i, s := range states {
		legend(i, stateInk[s], string(s), *l.Counts.of(s))
	}
	legend(len(states), inkBlue, "reworked", l.Counts.Reworked)
	y += 12
	p.SetFont("Helvetica", "", 8)
	p.ink(inkGrey)
	var notes []string
	if n := l.Counts.Refused; n > 0 {
		notes = append(notes, "REFUSED units were turned away before anything irreversible and have no part in the yields.")
	}
	if s := l.Simulated; s.Units > 0 {
		notes = append(notes, fmt.Sprintf("Beside these there are %d simulated units (%d PASS), which no figure but this one counts.", s.Units, s.Pass))
	}
	if l.Unknown > 0 {
		notes = append(notes, fmt.Sprintf("Attempts that ended before a board had told its MAC, and belong to no unit: %d.", l.Unknown))
	}
	for _, n := range notes {
		lines := p.wrap(n, textWidth)
		p.lines(pageMargin, y, textWidth, 4, lines)
		y += 4 * float64(len(lines))
	}
	return y + 4
}

// plots draws yield and cycle time side by side.
func (p *sheetPDF) plots() {
	const h = 62.0
	p.room(h + 6)
	y := p.GetY()
	w := (textWidth - 8) / 2
	p.yieldPlot(pageMargin, y, w, h)
	p.cyclePlot(pageMargin+w+8, y, w, h)
	p.SetXY(pageMargin, y+h+6)
}

// frame draws a plot's title and axes and gives its inner box.
func (p *sheetPDF) frame(x, y, w, h float64, title string) (ix, iy, iw, ih float64) {
	p.SetFont("Helvetica", "B", 9)
	p.ink(inkDark)
	p.put(x, y, w, 5, "L", title)
	ix, iy, iw, ih = x+11, y+12, w-13, h-24
	p.pen(lineGrey)
	p.SetLineWidth(0.2)
	p.Rect(ix, iy, iw, ih, "D")
	return ix, iy, iw, ih
}

func (p *sheetPDF) noData(x, y, w, h float64) {
	p.SetFont("Helvetica", "", 9)
	p.ink(inkGrey)
	p.put(x, y+h/2-2.5, w, 5, "C", "no units to count")
}

// yieldPlot shows both yields as they went with the number of units.
func (p *sheetPDF) yieldPlot(x, y, w, h float64) {
	ix, iy, iw, ih := p.frame(x, y, w, h, "Yield over units")
	var first, final []float64
	nf, np, n := 0, 0, 0
	for _, u := range p.lot.Units {
		if u.Simulated || u.State == Refused {
			continue
		}
		n++
		if u.FirstPass {
			nf++
		}
		if u.State == State(provision.Pass) {
			np++
		}
		first = append(first, float64(nf)/float64(n))
		final = append(final, float64(np)/float64(n))
	}
	if n == 0 {
		p.noData(ix, iy, iw, ih)
		return
	}
	low := 1.0
	for i := range first {
		if i >= n/20 { // the first few units swing wildly
			low = min(low, first[i], final[i])
		}
	}
	floor := max(0, float64(int(low*10)-1)/10)
	p.SetFont("Helvetica", "", 7)
	for i := range 5 {
		v := floor + (1-floor)*float64(i)/4
		at := iy + ih - ih*float64(i)/4
		p.pen(lineGrey)
		p.SetLineWidth(0.1)
		p.Line(ix, at, ix+iw, at)
		p.ink(inkGrey)
		p.put(x, at-2, 10, 4, "R", fmt.Sprintf("%.1f %%", v*100))
	}
	curve := func(values []float64, c rgb, dashes []float64) {
		p.pen(c)
		p.SetLineWidth(0.5)
		p.SetDashPattern(dashes, 0)
		defer p.SetDashPattern(nil, 0)
		const most = 300
		step := max(1, (len(values)+most-1)/most)
		at := func(i int) (float64, float64) {
			px := ix + iw
			if len(values) > 1 {
				px = ix + iw*float64(i)/float64(len(values)-1)
			}
			return px, iy + ih - ih*(max(values[i], floor)-floor)/(1-floor)
		}
		lx, ly := at(0)
		if len(values) == 1 {
			lx = ix
		}
		for i := step; ; i += step {
			i = min(i, len(values)-1)
			nx, ny := at(i)
			p.Line(lx, ly, nx, ny)
			lx, ly = nx, ny
			if i == len(values)-1 {
				return
			}
		}
	}
	curve(final, stateInk[State(provision.Pass)], nil)
	curve(first, stateInk[State(provision.Error)], []float64{0.8, 0.8}) // on top, and both show where they are one
	p.ink(inkGrey)
	p.put(ix, iy+ih+1, 20, 4, "L", "1")
	p.put(ix+iw-30, iy+ih+1, 30, 4, "R", fmt.Sprintf("%d units", n))
	p.key(ix, y+6, stateInk[State(provision.Pass)], "final", 20)
	p.key(ix+22, y+6, stateInk[State(provision.Error)], "first pass", 24)
}

// key is one entry of a plot's legend.
func (p *sheetPDF) key(x, y float64, c rgb, label string, w float64) {
	p.pen(c)
	p.SetLineWidth(0.8)
	p.Line(x, y+2, x+4, y+2)
	p.SetFont("Helvetica", "", 7.5)
	p.ink(inkGrey)
	p.put(x+5, y, w-5, 4, "L", label)
}

// cyclePlot is the histogram of cycle times, with median and 95th percentile.
func (p *sheetPDF) cyclePlot(x, y, w, h float64) {
	ix, iy, iw, ih := p.frame(x, y, w, h, "Cycle time of passing units")
	c := p.lot.Cycle
	if c.Units == 0 {
		p.noData(ix, iy, iw, ih)
		return
	}
	top := 0
	for _, b := range c.Histogram {
		top = max(top, b.Units)
	}
	scale := int(bucketWidth(int64(top) * 5)) // 4 to 10 lines
	for top > 8*scale {
		scale *= 2
	}
	ceiling := (top + scale - 1) / scale * scale
	p.SetFont("Helvetica", "", 7)
	for v := 0; v <= ceiling; v += scale {
		at := iy + ih - ih*float64(v)/float64(ceiling)
		p.pen(lineGrey)
		p.SetLineWidth(0.1)
		p.Line(ix, at, ix+iw, at)
		p.ink(inkGrey)
		p.put(x, at-2, 10, 4, "R", fmt.Sprint(v))
	}
	from, to := c.Histogram[0].FromMS, c.Histogram[len(c.Histogram)-1].ToMS
	at := func(ms int64) float64 { return ix + iw*float64(ms-from)/float64(to-from) }
	p.fill(inkBlue)
	for _, b := range c.Histogram {
		bh := ih * float64(b.Units) / float64(ceiling)
		if bh > 0 {
			p.Rect(at(b.FromMS)+0.2, iy+ih-bh, at(b.ToMS)-at(b.FromMS)-0.4, bh, "F")
		}
	}
	mark := func(ms int64, c rgb) {
		p.pen(c)
		p.SetLineWidth(0.4)
		p.SetDashPattern([]float64{1, 0.8}, 0)
		p.Line(at(ms), iy, at(ms), iy+ih)
		p.SetDashPattern(nil, 0)
	}
	mark(c.P50MS, inkDark)
	mark(c.P95MS, stateInk[State(provision.Fail)])
	p.ink(inkGrey)
	p.SetFont("Helvetica", "", 7)
	p.put(ix, iy+ih+1, 20, 4, "L", axis(from))
	p.put(ix+iw-20, iy+ih+1, 20, 4, "R", axis(to))
	p.key(ix, y+6, inkDark, "median "+seconds(c.P50MS, 1), 30)
	p.key(ix+30, y+6, stateInk[State(provision.Fail)], "95 % "+seconds(c.P95MS, 1), 30)
	p.put(ix, iy+ih+5, iw, 4, "L", fmt.Sprintf("min %s, 90 %% %s, 99 %% %s, max %s",
		seconds(c.MinMS, 1), seconds(c.P90MS, 1), seconds(c.P99MS, 1), seconds(c.MaxMS, 1)))
}

func axis(ms int64) string {
	if ms%1000 == 0 {
		return fmt.Sprintf("%d s", ms/1000)
	}
	return fmt.Sprintf("%d.%03d s", ms/1000, ms%1000)
}

// column of a table.
type column struct {
	title string
	width float64
	align string
	end   bool // of a text that is too long, show its end
}

// table draws rows; the texts of wrapped columns are broken into lines, the
// others cut. The head is repeated on every page.
func (p *sheetPDF) table(columns []column, wrapped int, rows [][]string, ink func(row, col int) rgb) {
	const lineHeight = 4.2
	head := func() {
		p.SetFont("Helvetica", "B", 8)
		p.fill(inkDark)
		y := p.GetY()
		p.Rect(pageMargin, y, textWidth, 6, "F")
		p.SetTextColor(255, 255, 255)
		x := pageMargin
		for _, c := range columns {
			p.put(x+1, y+0.9, c.width-2, lineHeight, c.align, c.title)
			x += c.width
		}
		p.SetXY(pageMargin, y+6)
	}
	p.room(18)
	head()
	for n, row := range rows {
		p.SetFont("Helvetica", "", 8)
		var lines []string
		height := lineHeight
		if wrapped >= 0 {
			lines = p.wrap(row[wrapped], columns[wrapped].width-2)
			const most = 12
			if len(lines) > most {
				lines = append(lines[:most-1], lines[most-1]+p.tr(" …"))
			}
			height = lineHeight * float64(len(lines))
		}
		height += 1.4
		if p.GetY()+height > pageBottom {
			p.AddPage()
			p.SetXY(pageMargin, 18)
			head()
			p.SetFont("Helvetica", "", 8)
		}
		y := p.GetY()
		if n%2 == 1 {
			p.fill(paleGrey)
			p.Rect(pageMargin, y, textWidth, height, "F")
		}
		x := pageMargin
		for i, c := range columns {
			p.ink(ink(n, i))
			if i == wrapped {
				p.lines(x+1, y+0.7, c.width-2, lineHeight, lines)
			} else {
				text := row[i]
				if c.end {
					text = p.ending(text, c.width-2)
				}
				p.put(x+1, y+0.7, c.width-2, lineHeight, c.align, text)
			}
			x += c.width
		}
		p.SetXY(pageMargin, y+height)
	}
	p.SetXY(pageMargin, p.GetY()+6)
}

func (p *sheetPDF) reasons() {
	p.room(30)
	p.heading("Why units did not pass")
	if len(p.lot.Reasons) == 0 {
		p.note("No unit of this report failed.")
		return
	}
	var rows [][]string
	for _, r := range p.lot.Reasons {
		rows = append(rows, []string{fmt.Sprint(r.Units), string(r.State), r.Cause, r.Reason})
	}
	p.table([]column{{title: "units", width: 14, align: "R"}, {title: "state", width: 27, align: "L"}, {title: "cause", width: 24, align: "L"}, {title: "reason", width: textWidth - 65, align: "L"}}, 3, rows,
		func(row, col int) rgb {
			if col == 1 {
				return stateInk[p.lot.Reasons[row].State]
			}
			return inkDark
		})
}

func (p *sheetPDF) note(s string) {
	p.SetFont("Helvetica", "", 9)
	p.ink(inkGrey)
	y := p.GetY()
	lines := p.wrap(s, textWidth)
	p.lines(pageMargin, y, textWidth, 4.5, lines)
	p.SetXY(pageMargin, y+4.5*float64(len(lines))+5)
}

func (p *sheetPDF) serials() {
	s := p.lot.Serials
	p.room(30)
	p.heading("Serial numbers")
	switch {
	case s.Units == 0:
		p.note("No unit of this report has a serial number.")
		return
	case len(s.Gaps) == 0 && len(s.Duplicates) == 0:
		p.note(fmt.Sprintf("%d units have a serial number and %d have none. No number is missing between the first and the last, and none stands on two units.", s.Units, s.Without))
		return
	}
	p.note(fmt.Sprintf("%d units have a serial number and %d have none.", s.Units, s.Without))
	p.SetXY(pageMargin, p.GetY()-2)
	var rows [][]string
	for _, g := range s.Gaps {
		text := g.From
		if g.From != g.To {
			text += " to " + g.To
		}
		rows = append(rows, []string{"missing", fmt.Sprint(g.Missing), text})
	}
	for _, d := range s.Duplicates {
		rows = append(rows, []string{"duplicate", fmt.Sprint(len(d.Units)), d.Serial + " on " + strings.Join(d.Units, ", ")})
	}
	p.table([]column{{title: "finding", width: 24, align: "L"}, {title: "count", width: 14, align: "R"}, {title: "serial numbers", width: textWidth - 38, align: "L"}}, 2, rows,
		func(int, int) rgb { return inkDark })
}

func (p *sheetPDF) units() {
	p.room(40)
	p.heading("Units")
	if len(p.lot.Units) == 0 {
		p.note("There are no units.")
		return
	}
	var rows [][]string
	for _, u := range p.lot.Units {
		state := string(u.State)
		if u.Simulated {
			state += " (sim)"
		}
		key := "-"
		if len(u.Fingerprint) > 12 {
			key = u.Fingerprint[:12]
		}
		rows = append(rows, []string{
			u.Unit, none(u.Serial), state, fmt.Sprint(u.Attempts), u.Chip + " " + u.Revision, key, minute(u.Ended),
			strings.TrimSuffix(seconds(u.CycleMS, 1), " s"), none(u.Slot), fmt.Sprint(u.Entry),
		})
	}
	p.table([]column{
		{title: "unit", width: 27, align: "L"},
		{title: "serial", width: 20, align: "L", end: true},
		{title: "state", width: 26, align: "L"},
		{title: "tries", width: 8, align: "R"},
		{title: "chip", width: 20, align: "L"},
		{title: "key fingerprint", width: 22, align: "L"},
		{title: "ended (UTC)", width: 25, align: "L"},
		{title: "s", width: 10, align: "R"},
		{title: "slot", width: 9, align: "L", end: true},
		{title: "entry", width: 13, align: "R"},
	}, -1, rows, func(row, col int) rgb {
		if col == 2 {
			return stateInk[p.lot.Units[row].State]
		}
		return inkDark
	})
}
