// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"bytes"
	"strconv"
	"strings"

	"diskhook/storage/progress"
)

// meter reads what `qemu-img -p` prints on stdout, in pieces of any size:
// fields "    (12.31/100%)" that end with a carriage return, the last with a
// newline. Anything else is passed over.
type meter struct {
	total  int64
	report progress.Func
	rest   []byte // an unfinished field
}

// most is longer than any field; more without an end is no progress.
const most = 64

func (m *meter) Write(p []byte) (int, error) {
	m.rest = append(m.rest, p...)
	for {
		end := bytes.IndexAny(m.rest, "\r\n")
		if end < 0 {
			break
		}
		if percent, ok := parsePercent(string(m.rest[:end])); ok {
			m.report(int64(percent/100*float64(m.total)), m.total)
		}
		m.rest = m.rest[end+1:]
	}
	if len(m.rest) > most {
		m.rest = m.rest[len(m.rest)-most:]
	}
	m.rest = bytes.Clone(m.rest)
	return len(p), nil
}

// parsePercent reads one field. QEMU may print a little more than 100.
func parsePercent(field string) (float64, bool) {
	field, found := strings.CutSuffix(strings.TrimSpace(field), "/100%)")
	number, opened := strings.CutPrefix(field, "(")
	percent, err := strconv.ParseFloat(number, 64)
	if !found || !opened || err != nil || !(percent >= 0) {
		return 0, false
	}
	return min(percent, 100), true
}
