package web_test

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"

	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/people"
	"github.com/provisiond/provisiond/station/web"
)

var placeholder = regexp.MustCompile(`\{\d\}`)

// TestLanguages: every text exists in every language, with the same places to fill.
func TestLanguages(t *testing.T) {
	langs, err := web.Languages()
	if err != nil {
		t.Fatal(err)
	}
	en := langs["en"]
	if len(langs) != 3 || len(en) < 200 {
		t.Fatalf("%d languages, %d texts", len(langs), len(en))
	}
	for tag, words := range langs {
		if d := cmp.Diff(slices.Sorted(maps.Keys(en)), slices.Sorted(maps.Keys(words))); d != "" {
			t.Errorf("%s (-en +%s):\n%s", tag, tag, d)
		}
		for k, text := range words {
			if strings.TrimSpace(text) == "" {
				t.Errorf("%s: %s is empty", tag, k)
			}
			want, got := placeholder.FindAllString(en[k], -1), placeholder.FindAllString(text, -1)
			slices.Sort(want)
			slices.Sort(got)
			if !slices.Equal(want, got) {
				t.Errorf("%s: %s has places %v, English has %v", tag, k, got, want)
			}
		}
	}
	// Words that would look alike for two states would be no help.
	for tag, words := range langs {
		seen := map[string]station.SlotState{}
		for _, s := range station.SlotStates() {
			w := words["state."+string(s)]
			if w == "" || words["meaning."+string(s)] == "" {
				t.Errorf("%s has no word or meaning for state %s", tag, s)
			}
			if o, ok := seen[w]; ok {
				t.Errorf("%s: %s and %s are both %q", tag, o, s, w)
			}
			seen[w] = s
		}
		for _, v := range []provision.Verdict{provision.Pass, provision.Fail, provision.Error, provision.Aborted, provision.Quarantined} {
			if words["verdict."+string(v)] == "" {
				t.Errorf("%s has no word for %s", tag, v)
			}
		}
		for _, r := range people.Roles() {
			if words["role."+string(r)] == "" {
				t.Errorf("%s has no word for role %s", tag, r)
			}
		}
	}
}

var (
	keyUsed  = regexp.MustCompile(`\bt "([a-z0-9.-]+)"`)
	keyMade  = regexp.MustCompile(`\bt \(print "([a-z.]+)" `)
	wordUsed = regexp.MustCompile(`\bword "([a-z]+)"`)
	keyInGo  = regexp.MustCompile(`"((?:title|done|confirm|error|scan|code|unit)\.[a-z.-]+)"`)
)

// TestKeysAreThere: every key that a template or a handler names is in the files,
// and every text in the files is named by something.
func TestKeysAreThere(t *testing.T) {
	langs, err := web.Languages()
	if err != nil {
		t.Fatal(err)
	}
	en := langs["en"]
	used, groups := map[string]string{}, []string{"format.", "state.", "meaning.", "verdict.", "role.", "prefs.lang.", "serials.", "condition."}
	take := func(file, text string) {
		for _, m := range keyUsed.FindAllStringSubmatch(text, -1) {
			used[m[1]] = file
		}
		for _, m := range keyMade.FindAllStringSubmatch(text, -1) {
			groups = append(groups, m[1])
		}
		for _, m := range wordUsed.FindAllStringSubmatch(text, -1) {
			groups = append(groups, m[1]+".")
		}
	}
	names, err := fs.Glob(web.Templates, "templates/*.html")
	if err != nil || len(names) < 5 {
		t.Fatal(names, err)
	}
	for _, n := range names {
		b, err := web.Templates.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		take(n, string(b))
	}
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range sources {
		if strings.HasSuffix(n, "_test.go") {
			continue
		}
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range keyInGo.FindAllStringSubmatch(string(b), -1) {
			used[m[1]] = n
		}
	}
	for k, file := range used {
		if en[k] == "" {
			t.Errorf("%s names %s, which no language has", file, k)
		}
	}
	for k := range en {
		base := strings.TrimSuffix(strings.TrimSuffix(k, ".effect"), ".button")
		if used[k] == "" && used[base] == "" && !slices.ContainsFunc(groups, func(g string) bool { return strings.HasPrefix(k, g) }) {
			t.Errorf("nothing names %s", k)
		}
	}
}

// TestStepsHaveWords: every step that the engine names has a word in every
// language.
func TestStepsHaveWords(t *testing.T) {
	langs, err := web.Languages()
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`(?m)^\s*(?:const )?(?:stage|step)[A-Z]\w*\s*= "([a-z-]+)"`)
	found := 0
	for _, file := range []string{"stages.go", "rework.go"} {
		b, err := os.ReadFile(filepath.Join("..", "..", "provision", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range name.FindAllStringSubmatch(string(b), -1) {
			found++
			for tag, words := range langs {
				if words["step."+m[1]] == "" {
					t.Errorf("%s has no word for step %s", tag, m[1])
				}
			}
		}
	}
	if found < 15 {
		t.Errorf("only %d steps were found", found)
	}
}

var action = regexp.MustCompile(`(?s)\{\{.*?\}\}`)

// TestNothingHardCoded: no template holds a word of any language outside its
// actions: not as text, and not in what screen readers say.
func TestNothingHardCoded(t *testing.T) {
	letters := regexp.MustCompile(`\p{L}{2,}`)
	names, err := fs.Glob(web.Templates, "templates/*.html")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		b, err := web.Templates.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		z := html.NewTokenizer(strings.NewReader(action.ReplaceAllString(string(b), "")))
		inCode := false
		for {
			tt := z.Next()
			if tt == html.ErrorToken {
				break
			}
			tok := z.Token()
			switch tt {
			case html.StartTagToken, html.SelfClosingTagToken:
				// A command line, and the paths for machines, are the same in every language.
				inCode = tok.Data == "code" || tok.Data == "a" && strings.HasPrefix(attr(tok, "href"), "/")
				for _, a := range tok.Attr {
					if slices.Contains([]string{"title", "aria-label", "placeholder", "alt", "label"}, a.Key) && letters.MatchString(a.Val) {
						t.Errorf("%s: %s=%q is in no language file", n, a.Key, a.Val)
					}
					if a.Key == "style" || strings.HasPrefix(a.Key, "on") || strings.HasPrefix(a.Key, "hx-on") {
						t.Errorf("%s: %s=%q is code inside a page", n, a.Key, a.Val)
					}
				}
				if tok.Data == "style" || tok.Data == "script" && attr(tok, "src") == "" && !strings.Contains(string(b), `<script src=`) {
					t.Errorf("%s: <%s> inside a page", n, tok.Data)
				}
			case html.EndTagToken:
				inCode = false
			case html.TextToken:
				if letters.MatchString(tok.Data) && !inCode {
					t.Errorf("%s: %q is in no language file", n, strings.TrimSpace(tok.Data))
				}
			case html.CommentToken, html.DoctypeToken, html.ErrorToken:
			}
		}
	}
}

func attr(t html.Token, name string) string {
	for _, a := range t.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func TestAcceptLanguage(t *testing.T) {
	for header, want := range map[string]string{
		"": "en", "de": "de", "de-AT,en;q=0.5": "de", "fr,zh-CN;q=0.8,en;q=0.2": "zh", "en;q=0.3, de;q=0.9": "de", "de;q=0, zh": "zh", "de;q=x": "en", "*": "en",
	} {
		if got := web.AcceptLanguage(header); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}
