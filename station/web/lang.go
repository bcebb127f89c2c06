package web

import (
	"embed"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed lang/*.json
var langFiles embed.FS

// languages are the tags of lang/*.json, the usual one first.
var languages = []string{"en", "de", "zh"}

// lang is the words of one language.
type lang struct {
	tag   string
	words map[string]string
}

func loadLangs() (map[string]*lang, error) {
	out := map[string]*lang{}
	for _, tag := range languages {
		b, err := langFiles.ReadFile("lang/" + tag + ".json")
		if err != nil {
			return nil, err
		}
		l := &lang{tag: tag}
		if err := json.Unmarshal(b, &l.words); err != nil {
			return nil, fmt.Errorf("lang/%s.json: %w", tag, err)
		}
		out[tag] = l
	}
	return out, nil
}

// t gives the text of a key, with {0}, {1} … replaced. A key that is not there is
// shown as it is; a test sees to it that there is none.
func (l *lang) t(key string, args ...any) string {
	s, ok := l.words[key]
	if !ok {
		return key
	}
	for i, a := range args {
		s = strings.ReplaceAll(s, "{"+strconv.Itoa(i)+"}", fmt.Sprint(a))
	}
	return s
}

// word gives the text of a name that the program made, and the name itself where
// no text is known: a step's name, for example, may be newer than the language file.
func (l *lang) word(group, name any) string {
	if s, ok := l.words[fmt.Sprintf("%v.%v", group, name)]; ok {
		return s
	}
	return fmt.Sprint(name)
}

// condition names a condition of the station; each outbox has its own.
func (l *lang) condition(name string) string {
	if sink, ok := strings.CutPrefix(name, "outbox-"); ok {
		return l.t("condition.outbox", sink)
	}
	return l.word("condition", name)
}

// seconds writes a time in milliseconds.
func (l *lang) seconds(ms int64) string {
	s := strconv.FormatFloat(float64(ms)/1000, 'f', 1, 64)
	return strings.ReplaceAll(s, ".", l.words["format.decimal"]) + " s"
}

// percent writes n of a whole, one decimal, cut and not rounded: 99.96 % is not 100 %.
func (l *lang) percent(n, of int) string {
	if of <= 0 {
		return "–"
	}
	p := n * 1000 / of
	return strconv.Itoa(p/10) + l.words["format.decimal"] + strconv.Itoa(p%10) + " %"
}

// bytes writes a size.
func (l *lang) bytes(n int64) string {
	if n < 10<<10 {
		return strconv.FormatInt(n, 10) + " B"
	}
	return strconv.FormatInt(n>>10, 10) + " KiB"
}

// clock and date write a time as everybody on a line can read it.
func clock(t time.Time) string { return t.Local().Format("15:04:05") }
func date(t time.Time) string  { return t.Local().Format("2006-01-02 15:04:05") }

const (
	langCookie  = "lang"
	themeCookie = "theme"
)

// chooseLang takes what somebody chose, then the configuration, then the browser's
// wish.
func (s *Server) chooseLang(r *http.Request) *lang {
	if c, err := r.Cookie(langCookie); err == nil {
		if l, ok := s.langs[c.Value]; ok {
			return l
		}
	}
	if l, ok := s.langs[s.o.Config.Language]; ok {
		return l
	}
	return s.langs[acceptLanguage(r.Header.Get("Accept-Language"))]
}

// acceptLanguage picks the language with the highest weight (RFC 9110, 12.5.4).
func acceptLanguage(header string) string {
	if len(header) > 512 {
		header = header[:512]
	}
	best, bestQ := languages[0], -1.0
	for part := range strings.SplitSeq(header, ",") {
		tag, param, _ := strings.Cut(strings.TrimSpace(part), ";")
		q := 1.0
		if v, ok := strings.CutPrefix(strings.TrimSpace(param), "q="); ok {
			var err error
			if q, err = strconv.ParseFloat(v, 64); err != nil || q <= 0 || q > 1 {
				continue
			}
		}
		base, _, _ := strings.Cut(strings.ToLower(tag), "-")
		if slices.Contains(languages, base) && q > bestQ {
			best, bestQ = base, q
		}
	}
	return best
}

func theme(r *http.Request) string {
	if c, err := r.Cookie(themeCookie); err == nil && (c.Value == "light" || c.Value == "dark") {
		return c.Value
	}
	return "auto"
}
