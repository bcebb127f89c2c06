package web

import (
	"context"
	"errors"
	"html/template"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/people"
)

// Station is what the screens need of a station.
type Station interface {
	View() station.View
	Watch() *station.Watch
	StartUnit(ctx context.Context, by station.Person, slot, serial string) error
	AbortUnit(ctx context.Context, by station.Person, slot string) error
	ClearSlot(ctx context.Context, by station.Person, slot, note string) error
	OpenLot(ctx context.Context, by station.Person, r station.LotRequest) (station.LotView, error)
	CloseLot(ctx context.Context, by station.Person, id string) error
	Lots(ctx context.Context, limit int) ([]station.LotView, error)
	History(ctx context.Context, q station.HistoryQuery) ([]station.UnitView, error)
	Recipes() []station.RecipeView
	Plan(ctx context.Context, recipe string) (*provision.PlanReport, error)
	Certificate(ctx context.Context, unit string) ([]byte, error)
	Scan(ctx context.Context, by station.Person, code string) (station.ScanResult, error)
	Reprint(ctx context.Context, by station.Person, unit string) error
	Record(ctx context.Context, by station.Person, step string, body map[string]any) error
}

// Options are what a server is made from.
type Options struct {
	Station Station
	People  People
	Metrics *Metrics    // nil: made new
	Log     *zap.Logger // nil: none
	Config  Config
	// Tokens are the machines that may use the API; see LoadTokens.
	Tokens Tokens

	// For tests; zero means the usual.
	Tick      time.Duration // shortest time between two frames of a stream: 200 ms
	Heartbeat time.Duration // of a stream: 15 s
	Viewers   int           // streams at once: 256
}

// Server answers everything under one address. It is an http.Handler.
type Server struct {
	o       Options
	log     *zap.Logger
	handler http.Handler
	langs   map[string]*lang
	pages   map[string]*template.Template // by language
	feed    *feed
	tiles   tileCache
	places  chan struct{} // one for each stream

	closing   chan struct{}
	closeOnce sync.Once
}

// New makes a server. It starts nothing: the station is watched while somebody
// looks.
func New(o Options) (*Server, error) {
	switch {
	case o.Station == nil:
		return nil, errors.New("web: no station")
	case o.People == nil:
		return nil, errors.New("web: no people")
	}
	o.Config.setDefaults()
	if err := o.Config.Validate(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics()
	}
	if o.Tick <= 0 {
		o.Tick = 200 * time.Millisecond
	}
	if o.Heartbeat <= 0 {
		o.Heartbeat = 15 * time.Second
	}
	if o.Viewers <= 0 {
		o.Viewers = 256
	}
	s := &Server{o: o, log: o.Log, closing: make(chan struct{}), places: make(chan struct{}, o.Viewers)}
	var err error
	if s.langs, err = loadLangs(); err != nil {
		return nil, err
	}
	if s.pages, err = loadPages(s.langs); err != nil {
		return nil, err
	}
	s.feed = newFeed(o.Station, o.Tick)
	o.Metrics.follow(o.Station)
	s.handler = s.protect(s.routes())
	return s, nil
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Close ends all streams. The server answers on.
func (s *Server) Close() { s.closeOnce.Do(func() { close(s.closing) }) }

// route is one method and path. The API's routes are a table, which a test
// holds against the OpenAPI file.
type route struct {
	method, path string
	action       people.Action // what the person must be allowed to do; "" is open to all
	handle       func(*request) error
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for _, r := range s.pageRoutes() {
		mux.Handle(r.method+" "+r.path, s.page(r))
	}
	for _, r := range s.apiRoutes() {
		mux.Handle(r.method+" "+r.path, s.api(r))
	}
	// What the table has not is a problem in JSON, not a page.
	mux.Handle(apiRoot+"/", s.api(route{handle: s.apiUnknown}))
	mux.Handle("GET /static/", s.static())
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.Handle("GET /metrics", s.o.Metrics.handler())
	return mux
}
