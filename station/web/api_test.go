package web_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"go.yaml.in/yaml/v3"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/layout"
	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/web"
)

type openAPI struct {
	Paths      map[string]map[string]yaml.Node `yaml:"paths"`
	Components struct {
		Schemas map[string]schema `yaml:"schemas"`
	} `yaml:"components"`
}

type schema struct {
	Properties map[string]schema `yaml:"properties"`
	Required   []string          `yaml:"required"`
	Items      *schema           `yaml:"items"`
	Enum       []string          `yaml:"enum"`
}

type operation struct {
	OperationID string               `yaml:"operationId"`
	Responses   map[string]yaml.Node `yaml:"responses"`
	RequestBody yaml.Node            `yaml:"requestBody"`
}

func readOpenAPI(t *testing.T) (doc openAPI, ops map[string]operation) {
	t.Helper()
	if err := yaml.Unmarshal(web.OpenAPI(), &doc); err != nil {
		t.Fatal(err)
	}
	ops = map[string]operation{}
	for path, item := range doc.Paths {
		for method, node := range item {
			if method == "parameters" {
				continue
			}
			var op operation
			if err := node.Decode(&op); err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			ops[strings.ToUpper(method)+" "+path] = op
		}
	}
	return doc, ops
}

func newValidator(t *testing.T) validator.Validator {
	t.Helper()
	doc, err := libopenapi.NewDocument(web.OpenAPI())
	if err != nil {
		t.Fatal(err)
	}
	v, errs := validator.NewValidator(doc)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if ok, errs := v.ValidateDocument(); !ok {
		for _, e := range errs {
			t.Errorf("the document itself: %v: %v", e, e.SchemaValidationErrors)
		}
	}
	return v
}

// TestOpenAPIRoutes: what is described is served, and what is served is described.
func TestOpenAPIRoutes(t *testing.T) {
	_, ops := readOpenAPI(t)
	api, _ := newServer(t, newDouble(1), nil).Routes()
	var served []string
	for _, r := range api {
		served = append(served, r[0]+" "+r[1])
	}
	slices.Sort(served)
	if d := cmp.Diff(slices.Sorted(maps.Keys(ops)), served); d != "" {
		t.Errorf("described and served (-described +served):\n%s", d)
	}
}

// TestOpenAPISchemas: the schemas have the members of the Go types, no more and no
// less, and require those that are never left out.
func TestOpenAPISchemas(t *testing.T) {
	doc, _ := readOpenAPI(t)
	s := doc.Components.Schemas
	for name, c := range map[string]struct {
		schema schema
		value  any
	}{
		"Slot": {s["Slot"], station.SlotView{}}, "Lot": {s["Lot"], station.LotView{}}, "Station": {s["Station"], station.View{}},
		"Condition": {s["Condition"], station.Condition{}}, "Port": {s["Port"], station.PortView{}}, "Yield": {s["Yield"], station.Yield{}},
		"Run": {s["Run"], station.UnitView{}}, "Recipe": {s["Recipe"], station.RecipeView{}}, "Plan": {s["Plan"], provision.PlanReport{}},
		"Range": {s["Range"], layout.Range{}}, "Region": {*s["Plan"].Properties["regions"].Items, layout.RegionSummary{}},
		"Bit": {*s["Plan"].Properties["bits"].Items, efuse.Bit{}}, "Advisory": {*s["Plan"].Properties["advisories"].Items, chip.Advisory{}},
		"Security": {s["Plan"].Properties["security"], provision.Security{}},
	} {
		var all, always []string
		for _, f := range reflect.VisibleFields(reflect.TypeOf(c.value)) {
			tag, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.Anonymous || tag == "-" || tag == "" {
				continue
			}
			all = append(all, tag)
			if opts != "omitempty" {
				always = append(always, tag)
			}
		}
		slices.Sort(all)
		slices.Sort(always)
		if name == "Bit" { // a bit without a field's name has none
			always = slices.DeleteFunc(always, func(s string) bool { return s == "field" })
		}
		if d := cmp.Diff(all, slices.Sorted(maps.Keys(c.schema.Properties))); d != "" {
			t.Errorf("%s: members (-Go +OpenAPI):\n%s", name, d)
		}
		slices.Sort(c.schema.Required)
		if d := cmp.Diff(always, c.schema.Required); d != "" {
			t.Errorf("%s: required (-Go +OpenAPI):\n%s", name, d)
		}
	}
	// The request is read strictly: every member of the schema is a member of the type.
	var lot station.LotRequest
	dec := json.NewDecoder(strings.NewReader(`{"id":"a","recipe":"b","quantity":1,"serials":{"from":"range","first":"A1","list":[]},"slots":[],"closed_is_forever":true}`))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&lot); err != nil {
		t.Error(err)
	}
	if n := reflect.TypeFor[station.LotRequest]().NumField(); n != len(s["LotRequest"].Properties) {
		t.Errorf("LotRequest has %d members, the schema %d", n, len(s["LotRequest"].Properties))
	}
	states := station.SlotStates()
	if len(states) != len(s["SlotState"].Enum) {
		t.Errorf("states %v, schema %v", states, s["SlotState"].Enum)
	}
	for _, st := range states {
		if !slices.Contains(s["SlotState"].Enum, string(st)) {
			t.Errorf("the schema does not know state %s", st)
		}
	}
}

// tokens are machines of the three roles.
func tokens(t testing.TB) web.Tokens {
	t.Helper()
	var out web.Tokens
	for _, role := range []string{"operator", "engineer", "auditor"} {
		out = append(out, web.Token{Person: station.Person{Name: "mes-" + role, Role: role}, SHA256: sum(role + "-token")})
	}
	return out
}

// call is a request to the API.
type call struct {
	method, path, body, role, contentType string
}

func (c call) request() *http.Request {
	var body io.Reader
	if c.body != "" {
		body = strings.NewReader(c.body)
	}
	r := httptest.NewRequest(c.method, "http://localhost"+c.path, body)
	if c.body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if c.contentType != "" {
		r.Header.Set("Content-Type", c.contentType)
	}
	if c.role != "" {
		r.Header.Set("Authorization", "Bearer "+c.role+"-token")
	}
	return r
}

func (c call) do(s http.Handler) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, c.request())
	return w
}

// valid holds an answer against the schema.
func valid(t *testing.T, v validator.Validator, r *http.Request, w *httptest.ResponseRecorder) bool {
	t.Helper()
	res := w.Result()
	defer func() { _ = res.Body.Close() }()
	ok, errs := v.ValidateHttpResponse(r, res)
	for _, e := range errs {
		t.Logf("%v: %v\n%s", e, e.SchemaValidationErrors, w.Body)
	}
	return ok
}

// TestOpenAPI makes every answer that the file describes happen, and holds each
// against its schema. An answer that is described and cannot be had is an error.
func TestOpenAPI(t *testing.T) {
	v := newValidator(t)
	_, ops := readOpenAPI(t)
	// What a good request of each operation is.
	good := map[string]call{
		"openapi": {}, "session": {}, "station": {}, "slots": {}, "recipes": {}, "lots": {path: "?limit=2"},
		"slot": {path: "A1"}, "start": {path: "A1", body: `{"serial":"AB1"}`}, "abort": {path: "A1"}, "clear": {path: "A1", body: `{"note":"new cable"}`},
		"openLot":  {body: `{"id":"L1","recipe":"sensor","quantity":5,"serials":{"from":"range","first":"AB001"},"closed_is_forever":true}`},
		"closeLot": {path: "L1"}, "history": {path: "?verdict=FAIL&lot=L-2026-47&limit=10&before=2000"}, "plan": {path: "sensor"},
		"certificate": {path: "24:0a:c4:00:1f:01"}, "reprint": {path: "24:0a:c4:00:1f:01"}, "scan": {body: `{"code":"SLOT:A1"}`},
	}
	// Who may not.
	forbidden := map[string]string{"clear": "operator", "recipes": "operator", "plan": "operator", "certificate": "operator"}
	kinds := map[string]station.ActionKind{"400": station.ActionInvalid, "404": station.ActionNotFound, "409": station.ActionConflict, "503": station.ActionFailed}
	for _, key := range slices.Sorted(maps.Keys(ops)) {
		op := ops[key]
		if op.OperationID == "events" {
			continue // TestAPIEvents
		}
		for _, status := range slices.Sorted(maps.Keys(op.Responses)) {
			t.Run(op.OperationID+"/"+status, func(t *testing.T) {
				d := newDouble(16)
				s := newServer(t, d, func(o *web.Options) { o.Tokens = tokens(t) })
				c, ok := good[op.OperationID]
				if !ok {
					t.Fatal("the test knows no good request")
				}
				c.role = "engineer"
				method, path, _ := strings.Cut(key, " ")
				c.method = method
				switch status {
				case "401":
					c.role = ""
				case "403":
					if c.role = forbidden[op.OperationID]; c.role == "" {
						c.role = "auditor"
					}
				case "413":
					c.body = `{"x":"` + strings.Repeat("x", 2<<20) + `"}`
				case "415":
					c.contentType = "text/plain"
				default:
					if k, ok := kinds[status]; ok {
						d.err = &station.ActionError{Kind: k, Text: "it is not so", Next: "do this", Err: errDisk}
					}
				}
				switch op.OperationID + "/" + status {
				case "slot/404", "plan/404":
					c.path, d.err = "nobody", nil
				case "lots/400":
					c.path, d.err = "?limit=0", nil
				case "history/400":
					c.path, d.err = "?verdict=GOOD", nil
				}
				if before, after, ok := strings.Cut(path, "{"); ok {
					_, after, _ = strings.Cut(after, "}")
					c.path = before + c.path + after
				} else {
					c.path = path + c.path
				}
				w := c.do(s)
				if fmt.Sprint(w.Code) != status {
					t.Fatalf("%s %s: status %d, want %s: %s", c.method, c.path, w.Code, status, w.Body)
				}
				if op.OperationID != "openapi" && !valid(t, v, c.request(), w) { // its own text is no JSON
					t.Error("the answer is not as it is described")
				}
				if strings.HasPrefix(status, "2") {
					if ok, errs := v.GetParameterValidator().ValidateQueryParams(c.request()); !ok {
						t.Error(errs)
					}
					if c.body != "" {
						if ok, errs := v.GetRequestBodyValidator().ValidateRequestBody(c.request()); !ok {
							t.Error(errs)
						}
					}
				} else if ct := w.Header().Get("Content-Type"); ct != "application/problem+json" {
					t.Errorf("a problem as %s", ct)
				}
				if w.Header().Get("Cache-Control") != "no-store" {
					t.Error("an answer of the API may be kept")
				}
			})
		}
	}
	// The test would not see a wrong answer if the validator let everything pass.
	d := newDouble(1)
	w := call{method: "GET", path: "/api/v1/slots", role: "engineer"}.do(newServer(t, d, func(o *web.Options) { o.Tokens = tokens(t) }))
	if valid(t, v, httptest.NewRequest(http.MethodGet, "http://localhost/api/v1/station", nil), w) {
		t.Error("a list of slots passes for a station")
	}
}

func TestAPIUnknown(t *testing.T) {
	s := newServer(t, newDouble(1), func(o *web.Options) { o.Tokens = tokens(t) })
	w := call{method: "GET", path: "/api/v1/keys", role: "engineer"}.do(s)
	if w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "openapi.yaml") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w = call{method: "GET", path: "/api/v1/slots/A1/start", role: "engineer"}.do(s)
	if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "POST" {
		t.Errorf("%d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
	for _, body := range []string{`{"serial":"a","key":"b"}`, `{"serial":"a"} {}`, `[]`, `{"serial":"` + strings.Repeat("a", 65) + `"}`, `{"serial":"a\u0000"}`, `{`} {
		w := call{method: "POST", path: "/api/v1/slots/A1/start", body: body, role: "engineer"}.do(s)
		if w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
	// What the station does not call an error of the request is not shown.
	d := newDouble(1)
	d.err = errDisk
	w = call{method: "POST", path: "/api/v1/slots/A1/abort", role: "engineer"}.do(newServer(t, d, func(o *web.Options) { o.Tokens = tokens(t) }))
	if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "space") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestAPIActions: every action reaches the station with the person who asked.
func TestAPIActions(t *testing.T) {
	for _, c := range []struct {
		call
		want string
	}{
		{call{path: "slots/A1/start", body: `{"serial":"AB1"}`}, `start A1 "AB1" by mes-engineer`},
		{call{path: "slots/A1/start"}, `start A1 "" by mes-engineer`},
		{call{path: "slots/A1/abort"}, `abort A1 by mes-engineer`},
		{call{path: "slots/A1/clear", body: `{"note":"cable"}`}, `clear A1 "cable" by mes-engineer`},
		{call{path: "lots/L1/close"}, `close L1 by mes-engineer`},
		{call{path: "units/24:0A:C4:00:1F:01/reprint"}, `reprint 24:0a:c4:00:1f:01 by mes-engineer`},
		{call{path: "scan", body: `{"code":" sn:ab1 "}`}, `scan SN:ab1 by mes-engineer`},
	} {
		d := newDouble(2)
		c.method, c.role, c.path = "POST", "engineer", "/api/v1/"+c.path
		w := c.do(newServer(t, d, func(o *web.Options) { o.Tokens = tokens(t) }))
		if got := d.called(); w.Code >= 300 || !slices.Equal(got, []string{c.want}) {
			t.Errorf("%s: %d %s: %q, want %q", c.path, w.Code, w.Body, got, c.want)
		}
	}
}

// TestRights: what a role may do at the pages and the API is what package people
// says; nobody who has not logged in gets anything but the door.
func TestRights(t *testing.T) {
	d := newDouble(2)
	s := newServer(t, d, func(o *web.Options) { o.Tokens = tokens(t) })
	api, pages := s.Routes()
	open := []string{"/api/v1/openapi.yaml", "/login", "/logout", "/prefs", "/help"}
	for _, r := range slices.Concat(api, pages) {
		if (r[2] == "") != slices.Contains(open, r[1]) {
			t.Errorf("%s %s needs %q", r[0], r[1], r[2])
		}
		if r[0] != "GET" && r[2] == "board" {
			t.Errorf("%s %s is open where the board is", r[0], r[1])
		}
	}
	for code, role := range map[string]string{"CMD:CLEAR": "operator", "CMD:SCRAP": "auditor", "LOT:a:b:1": "auditor", "SN:1": "auditor", "CMD:ENDLOT": "auditor"} {
		if w := (call{method: "POST", path: "/api/v1/scan", body: `{"code":"` + code + `"}`, role: role}).do(s); w.Code != http.StatusForbidden {
			t.Errorf("%s may scan %s: %d", role, code, w.Code)
		}
	}
	if got := d.called(); got != nil {
		t.Errorf("the station was asked: %q", got)
	}
}
