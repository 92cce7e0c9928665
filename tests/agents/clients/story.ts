/** What the programs of this folder have in common: whom they ask, about what, and how they tell what was answered. */
declare const process: { env: Record<string, string> };

export function asked(key: string) {
  const url = process.env.DECISIONING_URL;
  const headers = { Authorization: `Bearer ${process.env.DECISIONING_API_KEY}` };
  const metric = process.env.METRIC; // registered already, so its key alone names it
  const hour = Math.floor(Date.now() / 3_600_000) * 3_600_000;
  const row = (variant: string, hoursAgo = 0) => ({
    metric, variant, ts: new Date(hour - hoursAgo * 3_600_000).toISOString(), value: 0.25, n: 1000,
  });
  return { url, headers, key, metric, row };
}

export function told(answers: Record<string, unknown>) {
  console.log(JSON.stringify(answers));
}
