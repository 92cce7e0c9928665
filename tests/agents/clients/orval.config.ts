declare const process: { env: Record<string, string> };

export default {
  portal: {
    input: "openapi.json",
    output: { target: "generated/orval.ts", client: "fetch", baseUrl: process.env.DECISIONING_URL },
  },
};
