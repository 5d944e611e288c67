// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"diskhook/storage/failure"
)

// format is how a verb prints its result.
type format string

// The formats. JSON has sizes in bytes and a "schema"; tables are for people.
const (
	table   format = "table"
	inJSON  format = "json"
	asNames format = "name"
)

func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: string(table), Usage: "`FORMAT` of the result: table, json or name"}
}

func dryRunFlag() cli.Flag {
	return &cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "print what would be done, do nothing; exit 10 if there is something to do"}
}

func outputOf(c *cli.Context) (format, error) {
	f := format(c.String("output"))
	if !slices.Contains([]format{table, inJSON, asNames}, f) {
		return "", failure.Hint(failure.New(failure.Usage, "--output %q: no such format", f), "use one of table, json, name")
	}
	return f, nil
}

// listing is a result in every format.
type listing struct {
	schema  string // "diskhook.local/v1"
	member  string // the name of the list in JSON
	items   any    // a slice
	header  []string
	rows    [][]string
	names   []string
	ifEmpty string // what a table says on standard error instead of an empty one
}

func (p *program) print(f format, l listing) error {
	switch f {
	case inJSON:
		return p.printJSON(map[string]any{"schema": l.schema, l.member: l.items})
	case asNames:
		for _, n := range l.names {
			if _, err := fmt.Fprintln(p.stdout, harmless(n)); err != nil {
				return err
			}
		}
		return nil
	}
	if len(l.rows) == 0 {
		if l.ifEmpty != "" {
			fmt.Fprintf(p.stderr, "diskhook: %s\n", l.ifEmpty)
		}
		return nil
	}
	return p.printTable(l.header, l.rows)
}

func (p *program) printJSON(v any) error {
	e := json.NewEncoder(p.stdout)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func (p *program) printTable(header []string, rows [][]string) error {
	w := tabwriter.NewWriter(p.stdout, 0, 8, 2, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		cells := make([]string, len(row))
		for i, cell := range row {
			if cells[i] = harmless(cell); cells[i] == "" {
				cells[i] = "-"
			}
		}
		// No padding after the last column.
		if _, err := fmt.Fprintln(w, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

// harmless makes a text from outside fit for a terminal and for one cell: what
// is not printable is written as Go would quote it.
func harmless(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	quoted := fmt.Sprintf("%q", s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// size renders bytes for people.
func size(n int64) string { return humanize.IBytes(uint64(max(0, n))) }

// isTerminal says whether a person looks at w and can be shown movement.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}
