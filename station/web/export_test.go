package web

import "time"

// Routes lists what the server answers: method, path and action of each.
func (s *Server) Routes() (api, pages [][3]string) {
	for _, r := range s.apiRoutes() {
		api = append(api, [3]string{r.method, r.path, string(r.action)})
	}
	for _, r := range s.pageRoutes() {
		pages = append(pages, [3]string{r.method, r.path, string(r.action)})
	}
	return api, pages
}

// Languages are the languages' texts.
func Languages() (map[string]map[string]string, error) {
	ls, err := loadLangs()
	out := map[string]map[string]string{}
	for tag, l := range ls {
		out[tag] = l.words
	}
	return out, err
}

// Templates is the text of the templates.
var Templates = templateFiles

// Static are the files that browsers load.
var Static = staticFiles

// Viewers says how many streams are open.
func (s *Server) Viewers() int {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	return s.feed.viewers
}

var (
	AcceptLanguage = acceptLanguage
	Normalise      = normalise
	LocalPath      = localPath
	Columns        = columns
)

// ScanCodes are the codes of the grammar.
func ScanCodes() (out []string) {
	for _, c := range scanCodes {
		out = append(out, c.Code)
	}
	return out
}

// Renewal gives the self-made certificates' serial numbers at several times.
func Renewal(dir string, at ...time.Time) ([]string, error) {
	var out []string
	m := &selfMade{dir: dir, names: []string{"localhost"}}
	for _, now := range at {
		m.now = func() time.Time { return now }
		c, err := m.get(nil)
		if err != nil {
			return nil, err
		}
		out = append(out, c.Leaf.SerialNumber.String())
	}
	return out, nil
}
