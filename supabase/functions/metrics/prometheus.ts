// The text format of Prometheus, version 0.0.4.

export type Sample = { labels?: Record<string, string>; value: number };
export type Family = { name: string; help: string; samples: Sample[] };

// Families of gauges.
export function write(families: Family[]): string {
  return families.filter(({ samples }) => samples.length > 0).map((family) => {
    const name = family.name.replace(/[^a-zA-Z0-9_:]/g, "_");
    const help = family.help.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
    const lines = family.samples.map(({ labels = {}, value }) => {
      const pairs = Object.entries(labels).map(([label, text]) => `${label}="${escape(text)}"`);
      return `${name}${pairs.length > 0 ? `{${pairs.join(",")}}` : ""} ${show(value)}\n`;
    });
    return `# HELP ${name} ${help}\n# TYPE ${name} gauge\n${lines.join("")}`;
  }).join("");
}

function escape(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}

function show(value: number): string {
  return Number.isFinite(value) || Number.isNaN(value)
    ? String(value)
    : value > 0
    ? "+Inf"
    : "-Inf";
}
