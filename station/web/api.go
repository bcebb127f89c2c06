package web

import (
	_ "embed"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station"
)

const apiRoot = "/api/v1"

//go:embed openapi.yaml
var openAPI []byte

// OpenAPI is the description of the API, as it is served.
func OpenAPI() []byte { return slices.Clone(openAPI) }

func (s *Server) apiRoutes() []route {
	return []route{
		{"GET", apiRoot + "/openapi.yaml", "", s.apiOpenAPI},
		{"GET", apiRoot + "/session", actBoard, s.apiSession},
		{"GET", apiRoot + "/station", actBoard, s.apiStation},
		{"GET", apiRoot + "/events", actBoard, s.apiEvents},
		{"GET", apiRoot + "/slots", actBoard, s.apiSlots},
		{"GET", apiRoot + "/slots/{slot}", actBoard, s.apiSlot},
		{"POST", apiRoot + "/slots/{slot}/start", actStart, s.apiStart},
		{"POST", apiRoot + "/slots/{slot}/abort", actAbort, s.apiAbort},
		{"POST", apiRoot + "/slots/{slot}/clear", actClear, s.apiClear},
		{"GET", apiRoot + "/lots", actView, s.apiLots},
		{"POST", apiRoot + "/lots", actOpenLot, s.apiOpenLot},
		{"POST", apiRoot + "/lots/{lot}/close", actCloseLot, s.apiCloseLot},
		{"GET", apiRoot + "/history", actView, s.apiHistory},
		{"GET", apiRoot + "/recipes", actRecipes, s.apiRecipes},
		{"GET", apiRoot + "/recipes/{recipe}/plan", actRecipes, s.apiPlan},
		{"GET", apiRoot + "/units/{unit}/certificate", actCertificate, s.doCertificate},
		{"POST", apiRoot + "/units/{unit}/reprint", actReprint, s.apiReprint},
		{"POST", apiRoot + "/scan", actScan, s.apiScan},
	}
}

// api is what all of the API has in common: a bearer token or a session, and
// problems instead of pages.
func (s *Server) api(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		q := s.newRequest(w, r, rt.path != apiRoot+"/events")
		if h := r.Header.Get("Authorization"); h != "" {
			// A wrong token is refused, also beside a good cookie.
			token, ok := strings.CutPrefix(h, "Bearer ")
			p, found := s.o.Tokens.find(token)
			if !ok || !found || len(token) > maxToken {
				writeProblem(w, newProblem(http.StatusUnauthorized, "login", "the token is not known here", "name a file with its SHA-256 in web.tokens"))
				return
			}
			q.person, q.token = &p, ""
		}
		if !q.may(rt.action) {
			p := newProblem(http.StatusForbidden, "role", "the role may not do this", "ask an engineer")
			if q.person == nil {
				p = newProblem(http.StatusUnauthorized, "login", "nobody has logged in", "send a token as Authorization: Bearer, or log in at /login")
			}
			writeProblem(w, p)
			return
		}
		if err := rt.handle(q); err != nil {
			writeProblem(w, s.asProblem(r, err))
		}
	})
}

func (s *Server) apiUnknown(q *request) error {
	p := newProblem(http.StatusNotFound, "not-found", "the API has no such path", "read "+apiRoot+"/openapi.yaml")
	// A path that the table knows under another method.
	for _, rt := range s.apiRoutes() {
		if rt.method != q.r.Method && matches(rt.path, q.r.URL.Path) {
			p = newProblem(http.StatusMethodNotAllowed, "method", "the path does not take "+q.r.Method, "read "+apiRoot+"/openapi.yaml")
			q.w.Header().Add("Allow", rt.method)
		}
	}
	return p
}

func matches(pattern, path string) bool {
	a, b := strings.Split(pattern, "/"), strings.Split(path, "/")
	return slices.EqualFunc(a, b, func(p, s string) bool { return p == s || strings.HasPrefix(p, "{") && s != "" })
}

func (q *request) json(status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	q.w.Header().Set("Content-Type", "application/json")
	q.w.WriteHeader(status)
	_, _ = q.w.Write(append(b, '\n')) // whoever asked is gone
	return nil
}

// body reads one JSON value. No body is an empty object.
func (q *request) body(v any) error {
	if q.r.ContentLength != 0 {
		if t, _, err := mime.ParseMediaType(q.r.Header.Get("Content-Type")); err != nil || t != "application/json" {
			return newProblem(http.StatusUnsupportedMediaType, "media-type", "the body is not application/json", "")
		}
	}
	d := json.NewDecoder(q.r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		err = errors.New("there is more behind the object")
	}
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return err
	}
	return badInput("the body is not what the API takes: " + err.Error())
}

func (q *request) noContent() error {
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

// list is never null: scripts trip over that.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func (s *Server) apiOpenAPI(q *request) error {
	q.w.Header().Set("Content-Type", "application/yaml")
	_, _ = q.w.Write(openAPI) // whoever asked is gone
	return nil
}

func (s *Server) apiSession(q *request) error {
	type session struct {
		Name string   `json:"name"`
		Role string   `json:"role"`
		May  []string `json:"may"`
	}
	var out session
	if q.person != nil {
		out.Name, out.Role = q.person.Name, q.person.Role
	}
	out.May = []string{}
	for _, a := range actions {
		if q.may(a) {
			out.May = append(out.May, string(a))
		}
	}
	return q.json(http.StatusOK, out)
}

func (s *Server) apiStation(q *request) error {
	v := s.feed.current().view
	v.Slots, v.Lots, v.Conditions = list(v.Slots), list(v.Lots), list(v.Conditions)
	return q.json(http.StatusOK, v)
}

func (s *Server) apiSlots(q *request) error {
	return q.json(http.StatusOK, list(s.feed.current().view.Slots))
}

func (s *Server) apiSlot(q *request) error {
	d, err := q.slotTile()
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, d.S)
}

func (s *Server) apiStart(q *request) error {
	var in struct {
		Serial string `json:"serial"`
	}
	slot := q.r.PathValue("slot")
	if err := q.body(&in); err != nil {
		return err
	}
	if err := errors.Join(sized("slot", slot, maxName), sized("serial", in.Serial, maxSerial)); err != nil {
		return err
	}
	if err := s.o.Station.StartUnit(q.r.Context(), q.by(), slot, in.Serial); err != nil {
		return err
	}
	return q.noContent()
}

func (s *Server) apiAbort(q *request) error {
	slot := q.r.PathValue("slot")
	if err := sized("slot", slot, maxName); err != nil {
		return err
	}
	if err := s.o.Station.AbortUnit(q.r.Context(), q.by(), slot); err != nil {
		return err
	}
	return q.noContent()
}

func (s *Server) apiClear(q *request) error {
	var in struct {
		Note string `json:"note"`
	}
	slot := q.r.PathValue("slot")
	if err := q.body(&in); err != nil {
		return err
	}
	if err := errors.Join(sized("slot", slot, maxName), sized("note", in.Note, maxNote)); err != nil {
		return err
	}
	if err := s.o.Station.ClearSlot(q.r.Context(), q.by(), slot, in.Note); err != nil {
		return err
	}
	return q.noContent()
}

func (s *Server) apiLots(q *request) error {
	limit := lotsShown
	if v := q.r.URL.Query().Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 200 {
			return badInput("limit is not a number from 1 to 200")
		}
		limit = n
	}
	lots, err := s.o.Station.Lots(q.r.Context(), limit)
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, list(lots))
}

func (s *Server) apiOpenLot(q *request) error {
	var in station.LotRequest
	if err := q.body(&in); err != nil {
		return err
	}
	if err := checkLot(in); err != nil {
		return err
	}
	lot, err := s.o.Station.OpenLot(q.r.Context(), q.by(), in)
	if err != nil {
		return err
	}
	return q.json(http.StatusCreated, lot)
}

func (s *Server) apiCloseLot(q *request) error {
	id := q.r.PathValue("lot")
	if err := sized("lot", id, maxName); err != nil {
		return err
	}
	if err := s.o.Station.CloseLot(q.r.Context(), q.by(), id); err != nil {
		return err
	}
	return q.noContent()
}

func (s *Server) apiHistory(q *request) error {
	h, err := historyQuery(q.r.URL.Query())
	if err != nil {
		return err
	}
	units, err := s.o.Station.History(q.r.Context(), h)
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, list(units))
}

func (s *Server) apiRecipes(q *request) error {
	return q.json(http.StatusOK, list(s.o.Station.Recipes()))
}

func (s *Server) apiPlan(q *request) error {
	name := q.r.PathValue("recipe")
	if !slices.ContainsFunc(s.o.Station.Recipes(), func(r station.RecipeView) bool { return r.Name == name }) {
		return newProblem(http.StatusNotFound, "not-found", "there is no such recipe", "")
	}
	p, err := s.o.Station.Plan(q.r.Context(), name)
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, planLists(*p))
}

// planLists is a plan without null lists.
func planLists(p provision.PlanReport) provision.PlanReport {
	p.Regions, p.Erase, p.Untouched = list(p.Regions), list(p.Erase), list(p.Untouched)
	p.Warnings, p.Stages, p.Bits, p.Block0 = list(p.Warnings), list(p.Stages), list(p.Bits), list(p.Block0)
	return p
}

func (s *Server) apiReprint(q *request) error {
	unit, err := q.unitName()
	if err != nil {
		return err
	}
	if err := s.o.Station.Reprint(q.r.Context(), q.by(), unit); err != nil {
		return err
	}
	return q.noContent()
}

// apiScan takes the codes of the station. Logging in and the answers to the
// page's questions are the page's.
func (s *Server) apiScan(q *request) error {
	var in struct {
		Code string `json:"code"`
	}
	if err := q.body(&in); err != nil {
		return err
	}
	code := normalise(in.Code)
	if err := sized("code", code, maxCode); err != nil {
		return err
	}
	switch {
	case code == "":
		return badInput("code is empty")
	case strings.HasPrefix(code, prefixBadge), code == cmdLogout, code == cmdYes, code == cmdNo:
		return badInput("this code is for the page, and not for the API")
	case !q.may(lookUp(code).action):
		return newProblem(http.StatusForbidden, "role", "the role may not do this", "ask an engineer")
	}
	res, err := s.o.Station.Scan(q.r.Context(), q.by(), code)
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, res)
}
