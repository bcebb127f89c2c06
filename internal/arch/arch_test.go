package arch_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

const module = "github.com/provisiond/provisiond"

// Packages that stand under everything and import nothing of ours.
var base = []string{"internal/secret", "internal/boltfile", "internal/canon", "internal/conf", "internal/seal"}

func onBase(more ...string) []string { return slices.Concat(base, more) }

// may says what a package and everything below it may import of this module.
// The longest name counts. Imports run one way: cmd, station, provision, then
// efuse and keystore, which do not know each other, then esp, then base.
var may = map[string][]string{
	"internal/secret":   {},
	"internal/boltfile": {},
	"internal/canon":    {},
	"internal/conf":     {},
	"internal/seal":     {},

	// What operators edit; only the files' text.
	"configs/vault": {},

	// What the service manager and udev read; only files and their tests.
	"systemd": {},

	"esp":       onBase("esp"),
	"efuse":     onBase("esp", "efuse"),
	"keystore":  onBase("configs/vault", "esp", "keystore"),
	"provision": onBase("esp", "efuse", "keystore", "provision"),
	// Backends in other modules use it: no engine, no eFuses.
	"provision/ota": onBase("esp", "keystore", "provision/ota"),
	"station":       onBase("esp", "efuse", "keystore", "provision", "station"),
	"station/port":  onBase("esp", "internal/espsim"),
	// A screen gets views and reports; neither keys nor who holds them.
	"station/web": {"esp/chip", "provision", "station"},
	"cmd":         onBase("esp", "efuse", "keystore", "provision", "station", "internal/espsim", "internal/pkcs11key", "internal/sample"),

	// The simulated chip shares no codec with the client.
	"internal/espsim": {"esp/chip", "efuse/table", "internal/espsim"},

	// Help for the demo, the tests and the developer.
	"internal/sample":     {"esp"},
	"internal/farm":       {"esp/chip", "internal/espsim", "internal/sample"},
	"internal/shift":      {},
	"internal/transcript": {},

	// Signing keys in tokens; built with the tag pkcs11 only.
	"internal/pkcs11key":            {"esp/secureboot"},
	"internal/pkcs11key/pkcs11test": {},
	"internal/vaulttest":            {},
	"internal/otaclient":            {"internal/espsim"},
	"internal/check":                {},
	"internal/debpkg":               {},
	"internal/arch":                 {},
}

// never lists what a package must not reach even through another one.
var never = map[string][]string{
	"internal/espsim": {"esp/rom", "esp/slip", "efuse/coding"},
	"esp":             {"efuse", "keystore"},
	"efuse":           {"keystore"},
}

// only says which packages may import a foreign module.
var only = map[string][]string{
	"go.bug.st/serial":               {"station/port"},
	"github.com/miekg/pkcs11":        {"internal/pkcs11key", "internal/pkcs11key/pkcs11test"},
	"github.com/nats-io/nats.go":     {"station/outbox/jetstream"},
	"github.com/nats-io/nats-server": {}, // tests only
	"github.com/chromedp":            {}, // tests only
	"github.com/pb33f":               {}, // tests only
}

// public are the packages whose API a module of somebody else uses.
var public = []string{"esp", "keystore", "provision/ota"}

// under reports whether the package name is of, or lies below it.
func under(name, of string) bool { return name == of || strings.HasPrefix(name, of+"/") }

func underAny(name string, of []string) bool {
	return slices.ContainsFunc(of, func(o string) bool { return under(name, o) })
}

// rule is the name in the table that counts for a package.
func rule(name string) (string, bool) {
	for ; name != "."; name = filepath.Dir(name) {
		if _, ok := may[name]; ok {
			return name, true
		}
	}
	return "", false
}

// pkg is a package as go list tells it.
type pkg struct {
	ImportPath, Dir, Name string
	GoFiles, CgoFiles     []string
	Imports, Deps         []string

	name string // ImportPath without the module
}

// packages lists the module's packages. Files of tests are not in the fields
// that are read here, so tests may import what they like.
var packages = sync.OnceValues(func() ([]pkg, error) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Name,GoFiles,CgoFiles,Imports,Deps", "./...")
	cmd.Dir = filepath.Join("..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(err, errors.New(stderr.String()))
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		p.name = own(p.ImportPath)
		all = append(all, p)
	}
})

// own is an import path without our module, "" if it is a foreign one.
func own(path string) string {
	name, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return ""
	}
	return name
}

func list(t *testing.T) []pkg {
	t.Helper()
	all, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Fatalf("go list knows %d packages only", len(all))
	}
	return all
}

func TestImports(t *testing.T) {
	for _, p := range list(t) {
		r, ok := rule(p.name)
		if !ok {
			t.Errorf("%s has no place yet: add it to the table in internal/arch", p.name)
			continue
		}
		for _, imp := range p.Imports {
			if name := own(imp); name != "" && !underAny(name, may[r]) {
				t.Errorf("%s imports %s: %s may import of this module only %q", p.name, name, r, may[r])
			}
			for foreign, allowed := range only {
				if under(imp, foreign) && !slices.Contains(allowed, p.name) {
					t.Errorf("%s imports %s: only %q may", p.name, foreign, allowed)
				}
			}
		}
	}
}

func TestNeverReaches(t *testing.T) {
	for _, p := range list(t) {
		for of, banned := range never {
			if !under(p.name, of) {
				continue
			}
			for _, dep := range p.Deps {
				if name := own(dep); name != "" && underAny(name, banned) {
					t.Errorf("%s reaches %s, through whatever it imports", p.name, name)
				}
			}
		}
	}
}

// An entry of the table without a package would be a typing error that allows
// nothing, or forbids nothing.
func TestTableNamesPackages(t *testing.T) {
	var names []string
	for _, p := range list(t) {
		names = append(names, p.name)
	}
	exists := func(entry string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return under(name, entry) })
	}
	for r, allowed := range may {
		for _, entry := range append([]string{r}, allowed...) {
			if !exists(entry) {
				t.Errorf("the table names %s, which does not exist", entry)
			}
		}
	}
	for _, allowed := range only {
		for _, entry := range allowed {
			if !exists(entry) {
				t.Errorf("the table names %s, which does not exist", entry)
			}
		}
	}
	for of, banned := range never {
		for _, entry := range append([]string{of}, banned...) {
			if !exists(entry) {
				t.Errorf("the table names %s, which does not exist", entry)
			}
		}
	}
}

// parse gives the package's files without its tests.
func parse(p pkg) (*token.FileSet, []*ast.File, error) {
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range slices.Concat(p.GoFiles, p.CgoFiles) {
		f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
	}
	return fset, files, nil
}

func TestPackageDocs(t *testing.T) {
	for _, p := range list(t) {
		fset, files, err := parse(p)
		if err != nil {
			t.Error(err)
			continue
		}
		d, err := doc.NewFromFiles(fset, files, p.ImportPath)
		if err != nil {
			t.Error(err)
			continue
		}
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command " + filepath.Base(p.Dir) + " "
		}
		if !strings.HasPrefix(d.Doc, want) {
			t.Errorf("%s has no package comment that begins with %q and says what it owns", p.name, want)
		}
	}
}

func TestPublicAPIs(t *testing.T) {
	for _, p := range list(t) {
		if !underAny(p.name, public) || strings.Contains(p.name, "/internal/") { // no other module imports those
			continue
		}
		fset, files, err := parse(p)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, l := range leaks(files) {
			t.Errorf("%s: %s carries %s, which another module cannot name", fset.Position(l.pos), l.what, l.path)
		}
	}
}

// The check itself, on a package that does everything wrong.
func TestLeaks(t *testing.T) {
	const src = `package p

import (
	"example.org/m/internal/secret"
	hidden "example.org/m/internal/other"
	"example.org/m/public"
)

var A secret.Bytes
var B = secret.New()
var c secret.Bytes
func C(map[string][]*secret.Bytes) {}
func D() (n int, err hidden.Error) { return }
func e(secret.Bytes) { var _ hidden.X }
type F struct { X int; Key *secret.Bytes; own secret.Bytes }
type g struct { Key func(...hidden.X) }
func H() *g { return nil }
type I interface { Do(chan secret.Bytes); do() }
type J = hidden.X
type K struct { hidden.X }
type L[T hidden.X] struct{}
func (F) M(secret.Bytes) {}
func (F) n(secret.Bytes) {}
type o struct{}
func (o) P(secret.Bytes) {}
func Q(public.X) { _ = secret.New() }
type R struct { k o; g2 g }
var S = func(x secret.Bytes) int { return 0 }
var T = public.X{}
const U = hidden.V
type Sum[T any] struct{}
func (Sum[T]) W(hidden.X) {}
`
	f, err := parser.ParseFile(token.NewFileSet(), "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range leaks([]*ast.File{f}) {
		got = append(got, l.what)
	}
	slices.Sort(got)
	want := []string{"A", "B", "C", "D", "F", "F.M", "H", "I", "J", "K", "L", "S", "Sum.W", "U"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("leaks (-want +got):\n%s", d)
	}
}

type leak struct {
	pos  token.Pos
	what string
	path string
}

// api walks the exported declarations of a package. It has no types: it follows
// names. A name of the package itself that is not exported is followed too,
// because its values come out through the name that refers to it.
type api struct {
	types map[string]*ast.TypeSpec
	files map[ast.Node]map[string]string // internal imports by name, of a declaration's file
	found []leak
	seen  map[string]bool
}

func leaks(files []*ast.File) []leak {
	a := &api{types: map[string]*ast.TypeSpec{}, files: map[ast.Node]map[string]string{}}
	for _, f := range files {
		imports := internalImports(f)
		for _, d := range f.Decls {
			a.files[d] = imports
			if g, ok := d.(*ast.GenDecl); ok {
				for _, s := range g.Specs {
					a.files[s] = imports
					if ts, ok := s.(*ast.TypeSpec); ok {
						a.types[ts.Name.Name] = ts
					}
				}
			}
		}
	}
	for _, f := range files {
		for _, d := range f.Decls {
			a.decl(d)
		}
	}
	return a.found
}

// internalImports maps the names under which a file knows internal packages.
func internalImports(f *ast.File) map[string]string {
	m := map[string]string{}
	for _, i := range f.Imports {
		path := strings.Trim(i.Path.Value, `"`)
		if !slices.Contains(strings.Split(path, "/"), "internal") {
			continue
		}
		name := filepath.Base(path)
		if i.Name != nil {
			name = i.Name.Name
		}
		m[name] = path
	}
	return m
}

func (a *api) decl(d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		what := d.Name.Name
		if d.Recv != nil {
			recv := receiver(d.Recv.List[0].Type)
			if !ast.IsExported(recv) {
				return
			}
			what = recv + "." + what
		}
		if d.Name.IsExported() {
			a.start(what, d, d.Type)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() {
					a.start(s.Name.Name, s, s)
				}
			case *ast.ValueSpec:
				for i, n := range s.Names {
					if !n.IsExported() {
						continue
					}
					// Without a type the value says what it is.
					if s.Type != nil {
						a.start(n.Name, s, s.Type)
					} else if i < len(s.Values) {
						a.start(n.Name, s, valueType(s.Values[i]))
					}
				}
			}
		}
	}
}

// valueType is the part of a value that shows its type: a function's signature
// without its body, otherwise all of it.
func valueType(e ast.Expr) ast.Node {
	if f, ok := e.(*ast.FuncLit); ok {
		return f.Type
	}
	return e
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

func (a *api) start(what string, file, n ast.Node) {
	a.seen = map[string]bool{}
	a.walk(what, n.Pos(), a.files[file], n)
}

func (a *api) walk(what string, pos token.Pos, imports map[string]string, n ast.Node) {
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			if ok && imports[x.Name] != "" {
				if !slices.ContainsFunc(a.found, func(l leak) bool { return l.what == what }) {
					a.found = append(a.found, leak{pos, what, imports[x.Name]})
				}
				return false
			}
		case *ast.StructType:
			a.fields(what, pos, imports, n.Fields)
			return false
		case *ast.InterfaceType:
			a.fields(what, pos, imports, n.Methods)
			return false
		case *ast.Ident:
			ts, ok := a.types[n.Name]
			if ok && !n.IsExported() && !a.seen[n.Name] {
				a.seen[n.Name] = true
				a.walk(what, pos, a.files[ts], ts)
			}
		}
		return true
	})
}

// fields walks what of a struct or interface can be seen from outside.
func (a *api) fields(what string, pos token.Pos, imports map[string]string, l *ast.FieldList) {
	for _, f := range l.List {
		if len(f.Names) == 0 || slices.ContainsFunc(f.Names, (*ast.Ident).IsExported) {
			a.walk(what, pos, imports, f.Type)
		}
	}
}

// guard is depguard's part of .golangci.yml.
type guard struct {
	ListMode string   `yaml:"list-mode"`
	Files    []string `yaml:"files"`
	Allow    []string `yaml:"allow,omitempty"`
	Deny     []deny   `yaml:"deny"`
}

type deny struct {
	Pkg  string `yaml:"pkg"`
	Desc string `yaml:"desc"`
}

// guards writes the table in depguard's words.
func guards() map[string]guard {
	const root = "${config-path}/"
	m := map[string]guard{}
	for r, allowed := range may {
		g := guard{
			ListMode: "lax",
			Files:    []string{root + r + "/**"},
			Deny:     []deny{{Pkg: module, Desc: "see the table in internal/arch"}},
		}
		for inner := range may {
			if inner != r && under(inner, r) {
				g.Files = append(g.Files, "!"+root+inner+"/**")
			}
		}
		slices.Sort(g.Files[1:])
		g.Files = append(g.Files, "!$test")
		for _, name := range allowed {
			g.Allow = append(g.Allow, module+"/"+name)
		}
		slices.Sort(g.Allow)
		m[r] = g
	}
	for foreign, allowed := range only {
		g := guard{
			ListMode: "lax",
			Files:    []string{"$all", "!$test"},
			Deny:     []deny{{Pkg: foreign, Desc: "see the table in internal/arch"}},
		}
		for _, name := range allowed {
			g.Files = append(g.Files, "!"+root+name+"/**")
		}
		m[foreign] = g
	}
	return m
}

func TestLinterHasTheSameRules(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Linters struct {
			Settings struct {
				Depguard struct {
					Rules map[string]guard `yaml:"rules"`
				} `yaml:"depguard"`
			} `yaml:"settings"`
		} `yaml:"linters"`
	}
	if err := yaml.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	// depguard reports a rule by its name, in which only letters are safe.
	want := map[string]guard{}
	for name, g := range guards() {
		want[strings.NewReplacer("/", "-", ".", "-").Replace(name)] = g
	}
	if d := cmp.Diff(want, c.Linters.Settings.Depguard.Rules); d != "" {
		text, _ := yaml.Marshal(want)
		t.Errorf("depguard's rules in .golangci.yml are not the table (-table +file):\n%s\nthey should be %q:\n%s",
			d, slices.Sorted(maps.Keys(want)), text)
	}
}
