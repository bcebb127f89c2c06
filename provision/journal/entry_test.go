package journal

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/provisiond/provisiond/esp/chip"
)

// goldenLine is also in docs/journal.md.
const goldenLine = `{"index":7,"job":"j-0001","kind":"observed","payload":{"md5":"9e107d9d372bb6826bd81d3542a419d6","offset":65536},` +
	`"prev":"3f0c9c4e4d9c2f1e5a7b8c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a0b9c8d7e6f","slot":"A3","station":"bench-1",` +
	`"step":"flash","time":"2026-11-22T16:15:00.000000000Z","unit":"02:00:00:00:00:01"}`

const goldenHash = "92d4f59b388efe54f118a71b1c565285d631b85b35551109d19fde20c905ee66"

func TestGolden(t *testing.T) {
	e, err := ParseEntry([]byte(goldenLine))
	if err != nil {
		t.Fatal(err)
	}
	if e.Index != 7 || e.Job != "j-0001" || e.Kind != KindObserved || e.Slot != "A3" || e.Station != "bench-1" || e.Step != "flash" ||
		!e.Time.Equal(time.Date(2026, 11, 22, 16, 15, 0, 0, time.UTC)) || e.Unit != (chip.MAC{2, 0, 0, 0, 0, 1}) ||
		!strings.HasPrefix(e.Prev.String(), "3f0c9c4e") {
		t.Errorf("%+v", e)
	}
	if got := HashLine([]byte(goldenLine)).String(); got != goldenHash {
		t.Errorf("hash %s", got)
	}
}

// TestDocument: docs/journal.md shows the same vector.
func TestDocument(t *testing.T) {
	doc, err := os.ReadFile("../../docs/journal.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{goldenLine, goldenHash, StepInit, string(bucketEntries), string(bucketUnits), string(bucketMeta), string(keyHead)} {
		if !bytes.Contains(doc, []byte(text)) {
			t.Errorf("docs/journal.md lacks %s", text)
		}
	}
}

// TestLeafHash compares with RFC 6962 as the Go checksum database has it.
func TestLeafHash(t *testing.T) {
	for _, n := range []int{0, 1, 400, 1022, 1023, 1024, 1025, 5000} {
		line := bytes.Repeat([]byte("x"), n)
		if HashLine(line) != Hash(tlog.RecordHash(line)) {
			t.Errorf("%d bytes: not the RFC 6962 leaf hash", n)
		}
	}
}

// TestParseEntryRefuses changes one thing of a good line at a time.
func TestParseEntryRefuses(t *testing.T) {
	for name, c := range map[string]struct{ from, to, field string }{
		"white space":       {`{"index"`, `{ "index"`, "index"},
		"leading zero":      {`"index":7`, `"index":07`, "index"},
		"minus zero":        {`"index":7`, `"index":-0`, "index"},
		"index as float":    {`"index":7`, `"index":7.0`, "offset 10"},
		"large index":       {`"index":7`, `"index":9007199254740992`, "index"},
		"order":             {`"job":"j-0001","kind":"observed"`, `"kind":"observed","job":"j-0001"`, "job"},
		"missing":           {`"slot":"A3",`, ``, "slot"},
		"unknown kind":      {`"observed"`, `"rumour"`, "kind"},
		"escaped slash":     {`"j-0001"`, `"j\/0001"`, "job"},
		"escaped letter":    {`"j-0001"`, `"\u006a-0001"`, "job"},
		"long newline":      {`"md5":"9e`, `"md5":"\u000a9e`, "payload"},
		"upper-case escape": {`"md5":"9e`, `"md5":"\u001F9e`, "payload"},
		"control in step":   {`"flash"`, `"fl\u0001ash"`, "step"},
		"bad UTF-8":         {`"flash"`, "\"fl\xffash\"", "step"},
		"payload order":     {`"md5":"9e107d9d372bb6826bd81d3542a419d6","offset":65536`, `"offset":65536,"md5":"x"`, "payload"},
		"payload twice":     {`"offset":65536`, `"md5":"x"`, "payload"},
		"payload float":     {`65536`, `6.5536e4`, "payload"},
		"payload comma":     {`65536}`, `65536,}`, "payload"},
		"payload array":     {`{"md5":"9e107d9d372bb6826bd81d3542a419d6","offset":65536}`, `[]`, "payload"},
		"payload key":       {`"md5":"9e107d9d372bb6826bd81d3542a419d6"`, `"key":"9e107d9d372bb6826bd81d3542a419d6"`, ""},
		"upper-case hex":    {`"3f0c`, `"3F0c`, "prev"},
		"short hash":        {`"3f0c`, `"0c`, "prev"},
		"zero prev":         {`3f0c9c4e4d9c2f1e5a7b8c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a0b9c8d7e6f`, strings.Repeat("0", 64), "prev"},
		"short time":        {`00.000000000Z`, `00Z`, "time"},
		"other zone":        {`000Z`, `000+00:00`, "time"},
		"no such day":       {`11-22`, `11-31`, "time"},
		"upper-case MAC":    {`02:00:00:00:00:01`, `0A:00:00:00:00:01`, "unit"},
		"zero MAC":          {`02:00:00:00:00:01`, `00:00:00:00:00:00`, "unit"},
		"after":             {`:01"}`, `:01"}x`, "end"},
		"newline":           {`:01"}`, ":01\"}\n", "end"},
		"cut":               {`:01"}`, `:01"`, "end"},
		"unknown field":     {`:01"}`, `:01","x":1}`, "end"},
	} {
		line := strings.Replace(goldenLine, c.from, c.to, 1)
		if line == goldenLine {
			t.Fatalf("%s: changes nothing", name)
		}
		_, err := ParseEntry([]byte(line))
		if c.field == "" {
			if err != nil { // the guard is Append's: what is stored stays readable
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: %v, want a word about %s", name, err, c.field)
		}
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add([]byte(goldenLine))
	f.Add([]byte(strings.Replace(goldenLine, "02:00:00:00:00:01", "", 1)))
	for _, payload := range []string{`{}`, `{"a":[1,-2,[],{}],"b":{"c":null,"d":true,"e":"ü\n\"\\\u0001"}}`, `{"n":-9007199254740991}`} {
		f.Add([]byte(strings.Replace(goldenLine, `{"md5":"9e107d9d372bb6826bd81d3542a419d6","offset":65536}`, payload, 1)))
	}
	first, err := Entry{Time: time.Unix(0, 0), Station: "s", Step: StepInit, Kind: KindStation}.Canonical()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(first)
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := ParseEntry(line)
		if err != nil {
			return
		}
		if again := e.appendTo(nil); !bytes.Equal(again, line) {
			t.Fatalf("read  %s\nwrote %s", line, again)
		}
		// Another reader sees the same fields.
		var other struct {
			Index                                      uint64
			Job, Kind, Prev, Slot, Station, Step, Unit string
			Payload                                    json.RawMessage
			Time                                       time.Time
		}
		if err := json.Unmarshal(line, &other); err != nil {
			t.Fatalf("encoding/json does not read %s: %v", line, err)
		}
		if other.Index != e.Index || other.Job != e.Job || other.Kind != string(e.Kind) || other.Prev != e.Prev.String() ||
			other.Slot != e.Slot || other.Station != e.Station || other.Step != e.Step || !other.Time.Equal(e.Time) ||
			!bytes.Equal(other.Payload, e.Payload) {
			t.Fatalf("%s\nreads as %+v and as %+v", line, e, other)
		}
	})
}

func FuzzCanonicalPayload(f *testing.F) {
	for _, s := range []string{`{}`, `{"b":1,"a":{"x":[true,null,"é\u00e9\ud83d\ude00\u2028"]}}`, ` { "a" : -0 } `, `{"a":1e3}`, `{"a":"\ud800"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := canonicalPayload(b)
		if err != nil || len(out) > MaxPayload {
			return
		}
		again, err := canonicalPayload(out)
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("%s is not canonical: %s, %v", out, again, err)
		}
		line := strings.Replace(goldenLine, `{"md5":"9e107d9d372bb6826bd81d3542a419d6","offset":65536}`, string(out), 1)
		if _, err := ParseEntry([]byte(line)); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	})
}
