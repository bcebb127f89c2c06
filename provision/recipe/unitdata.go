package recipe

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	tmpl "text/template/parse"
)

// UnitData is a partition whose contents are each unit's own.
type UnitData struct {
	Partition string // its label
	Template  string // path of a text template, relative to the recipe's directory, or absolute
}

// maxTemplate limits a template: what a board reads at its start is small.
const maxTemplate = 64 << 10

// UnitFields are what a template can say of a unit. All of it is public; the one
// secret, .OTAToken, is put in by [UnitTemplate.Render]'s caller.
type UnitFields struct {
	MAC      string // 24:0a:c4:00:00:01
	Serial   string // the unit's serial number, as on its label
	Lot      string
	Station  string
	Recipe   string
	Revision int
	Chip     string
}

// sample stands for a unit when a template is tried at load: every text has the
// most that it can have, so that what fits for the sample fits for units.
func (r *Recipe) sample() UnitFields {
	text := strings.Repeat("0", maxUnitText)
	return UnitFields{
		MAC: "00:00:00:00:00:00", Serial: text, Lot: text, Station: text,
		Recipe: r.Name, Revision: r.Revision, Chip: r.Chip,
	}
}

// maxUnitText is what a serial number, lot or station is taken to have at most when
// the room in the partition is checked at load. A longer one is checked with its unit.
const maxUnitText = 64

// UnitTemplate is the template of a recipe, read and tried.
type UnitTemplate struct {
	Path   string
	SHA256 [sha256.Size]byte // of the file
	Source []byte            // the file

	t *template.Template
	// needs lists the fields that the text has no sense without.
	needs []string
	token bool
	most  int
}

// OTATokenText is the length of an OTA token's text (keystore.OTAToken.UseText).
const OTATokenText = 43

// otaToken is what templates see of the token: a run of NUL bytes of its length. A
// string in Go cannot be wiped, so the token itself never becomes one.
type otaToken struct{}

var tokenMark = bytes.Repeat([]byte{0}, OTATokenText)

func (otaToken) String() string { return string(tokenMark) }

// unitView is the data of a template.
type unitView struct {
	UnitFields
	OTAToken otaToken
}

// templateFuncs is all that a template can call.
var templateFuncs = template.FuncMap{
	"upper":   strings.ToUpper,
	"lower":   strings.ToLower,
	"replace": func(s, from, to string) string { return strings.ReplaceAll(s, from, to) },
	"json":    jsonText,
}

// allowedFuncs are these and the few built-in ones that do not print.
var allowedFuncs = append(slices.Collect(maps.Keys(templateFuncs)), "and", "or", "not", "eq", "ne")

// jsonText makes a JSON string or number, with its quotes.
func jsonText(v any) (string, error) {
	if t, ok := v.(otaToken); ok {
		return `"` + t.String() + `"`, nil // base64url needs no escapes
	}
	b, err := json.Marshal(v)
	return string(b), err
}

// unitFieldNames are the fields that a template can name.
var unitFieldNames = []string{"MAC", "Serial", "Lot", "Station", "Recipe", "Revision", "Chip", "OTAToken"}

// loadTemplate reads the template of unit_data and tries it. It is nil without
// unit_data. The error is Errors.
func (r *Recipe) loadTemplate() (*UnitTemplate, error) {
	if r.UnitData == nil {
		return nil, nil //nolint:nilnil // a recipe without one
	}
	path := r.resolve(r.UnitData.Template)
	b, err := readLimited(osOpener{}, path, maxTemplate)
	if err != nil {
		return nil, Errors{r.FieldError("unit_data.template", fmt.Sprintf("%s: %v", path, err), "give the path of a text template, relative to the recipe")}
	}
	t, errs := parseTemplate(path, b)
	if len(errs) == 0 {
		text, err := t.Render(r.sample())
		if err != nil {
			errs = append(errs, templateError(path, err))
		}
		t.most = len(text.Text)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return t, nil
}

func parseTemplate(path string, b []byte) (*UnitTemplate, Errors) {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return nil, Errors{{File: path, Line: 1 + bytes.Count(b[:i], []byte("\n")), Problem: "holds a NUL byte", Fix: "write a text"}}
	}
	t, err := template.New(unitTemplateName).Option("missingkey=error").Funcs(templateFuncs).Parse(string(b))
	if err != nil {
		return nil, Errors{templateError(path, err)}
	}
	u := &UnitTemplate{Path: path, SHA256: sha256.Sum256(b), Source: b, t: t}
	w := templateWalk{path: path, text: b, guarded: map[string]bool{}, named: map[string]bool{}}
	if len(t.Templates()) > 1 {
		w.add(0, "defines another template", "write one text")
	}
	if t.Tree != nil {
		w.list(t.Root)
	}
	for _, f := range unitFieldNames {
		if w.named[f] && !w.guarded[f] {
			u.needs = append(u.needs, f)
		}
	}
	u.token = w.named["OTAToken"]
	return u, w.errs
}

const unitTemplateName = "unit_data"

var templateLine = regexp.MustCompile(`^template: ` + unitTemplateName + `:(\d+)(?::\d+)?: `)

// templateError gives an error of text/template its file and line.
func templateError(path string, err error) *Error {
	msg, line := err.Error(), 0
	if m := templateLine.FindStringSubmatch(msg); m != nil {
		line, _ = strconv.Atoi(m[1]) // digits
		msg = msg[len(m[0]):]
	}
	return &Error{File: path, Line: line, Problem: "is no template for a unit: " + msg, Fix: templateFix}
}

var templateFix = "fields are ." + strings.Join(unitFieldNames, ", .") + "; functions " + strings.Join(slices.Sorted(slices.Values(allowedFuncs)), ", ")

// templateWalk looks through a template for what it names. Running it with a
// sample would not reach what stands in a branch that is not taken.
type templateWalk struct {
	path    string
	text    []byte
	errs    Errors
	named   map[string]bool
	guarded map[string]bool // asked for by an if or with: the text can do without
}

func (w *templateWalk) add(at tmpl.Pos, problem, fix string) {
	line := 1 + bytes.Count(w.text[:min(int(at), len(w.text))], []byte("\n"))
	w.errs = append(w.errs, &Error{File: w.path, Line: line, Problem: problem, Fix: fix})
}

func (w *templateWalk) list(l *tmpl.ListNode) {
	if l == nil {
		return
	}
	for _, n := range l.Nodes {
		w.node(n)
	}
}

func (w *templateWalk) node(n tmpl.Node) {
	switch n := n.(type) {
	case *tmpl.TextNode, *tmpl.CommentNode:
	case *tmpl.ActionNode:
		w.pipe(n.Pipe, false, true)
	case *tmpl.IfNode:
		w.pipe(n.Pipe, true, true)
		w.list(n.List)
		w.list(n.ElseList)
	default:
		w.add(n.Position(), fmt.Sprintf("%s cannot stand in a template for a unit", n), "use text, fields and if; "+templateFix)
	}
}

// pipe looks through a pipeline. Only what an outer one gives is printed as it is.
func (w *templateWalk) pipe(p *tmpl.PipeNode, guard, outer bool) {
	if len(p.Decl) > 0 {
		w.add(p.Position(), "has a variable", "write the field itself")
	}
	for _, c := range p.Cmds {
		for _, a := range c.Args {
			w.arg(a, guard)
		}
	}
	// The token is no string while the template runs: nothing can be made of it.
	for i, c := range p.Cmds {
		for k, a := range c.Args {
			f, ok := a.(*tmpl.FieldNode)
			if !ok || len(f.Ident) != 1 || f.Ident[0] != "OTAToken" {
				continue
			}
			alone := len(p.Cmds) == 1 && len(c.Args) == 1
			quoted := len(p.Cmds) == 1 && k == 1 && len(c.Args) == 2 && c.Args[0].String() == "json" ||
				len(p.Cmds) == 2 && i == 0 && len(c.Args) == 1 && p.Cmds[1].String() == "json"
			if !outer || !alone && !quoted {
				w.add(a.Position(), "something is made of .OTAToken", "write it as it is, or with json")
			}
		}
	}
}

func (w *templateWalk) arg(a tmpl.Node, guard bool) {
	switch a := a.(type) {
	case *tmpl.StringNode, *tmpl.NumberNode, *tmpl.BoolNode:
	case *tmpl.PipeNode:
		w.pipe(a, guard, false)
	case *tmpl.FieldNode:
		if len(a.Ident) != 1 || !slices.Contains(unitFieldNames, a.Ident[0]) {
			w.add(a.Position(), fmt.Sprintf("unknown field %s", a), templateFix)
			return
		}
		w.named[a.Ident[0]] = true
		w.guarded[a.Ident[0]] = w.guarded[a.Ident[0]] || guard
	case *tmpl.IdentifierNode:
		if !slices.Contains(allowedFuncs, a.Ident) {
			w.add(a.Position(), "unknown function "+a.Ident, templateFix)
		}
	default:
		w.add(a.Position(), fmt.Sprintf("%s cannot stand in a template for a unit", a), templateFix)
	}
}

// NeedsToken reports that the text has the unit's OTA token in it.
func (t *UnitTemplate) NeedsToken() bool { return t.token }

// MaxLen is how long the text is for a unit whose serial number, lot and station have
// 64 bytes each.
func (t *UnitTemplate) MaxLen() int { return t.most }

// Missing names the first field that a unit lacks and the text has no sense
// without, "" if it has all. A field that the text asks for with if may be empty.
func (t *UnitTemplate) Missing(f UnitFields) string {
	empty := map[string]bool{"Serial": f.Serial == "", "Lot": f.Lot == "", "Station": f.Station == ""}
	for _, name := range t.needs {
		if empty[name] {
			return name
		}
	}
	return ""
}

// UnitText is the text for one unit. Where the OTA token belongs stand NUL bytes.
type UnitText struct {
	Text   []byte
	Tokens []int // where tokens begin
}

// Render makes the text for a unit.
func (t *UnitTemplate) Render(f UnitFields) (UnitText, error) {
	for _, v := range []string{f.MAC, f.Serial, f.Lot, f.Station} {
		if problem := badText(v, maxText); v != "" && problem != "" {
			return UnitText{}, fmt.Errorf("what is known of the unit cannot stand in its data: %s", problem)
		}
	}
	var b bytes.Buffer
	if err := t.t.Execute(&b, unitView{UnitFields: f}); err != nil {
		return UnitText{}, err
	}
	out := UnitText{Text: b.Bytes()}
	for at := 0; ; {
		i := bytes.Index(out.Text[at:], tokenMark)
		if i < 0 {
			break
		}
		out.Tokens = append(out.Tokens, at+i)
		at += i + OTATokenText
	}
	if n := bytes.Count(out.Text, []byte{0}); n != len(out.Tokens)*OTATokenText {
		return UnitText{}, errors.New("the OTA token can be written as it is or with json only")
	}
	return out, nil
}
