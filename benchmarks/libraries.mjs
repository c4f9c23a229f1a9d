// Runs Node's client libraries against a running cluster, as `benchmarks.libraries` does Python's (docs/CLIENTS.md):
//   npm install ai @ai-sdk/openai-compatible @ai-sdk/anthropic openai @anthropic-ai/sdk zod
//   node benchmarks/libraries.mjs URL
// Libraries are resolved from the folder in which it runs.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const url = process.argv[2].replace(/\/$/, "");
const model = (await (await fetch(`${url}/v1/models`)).json()).data[0].id;
const require = createRequire(`${process.cwd()}/`);
const load = async (name) => import(pathToFileURL(require.resolve(name)));
const said = "Say hello.";
const messages = [{ role: "user", content: said }];
const parameters = { type: "object", properties: { city: { type: "string", enum: ["Paris"] } }, required: ["city"] };

function expect(met, what) {
  if (!met) throw new Error(what);
}

async function aiSdk() {
  const { generateText, streamText, Output, tool, jsonSchema } = await load("ai");
  const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
  const { createAnthropic } = await load("@ai-sdk/anthropic");
  const settings = { baseURL: `${url}/v1`, apiKey: "x" };
  const providers = {
    openaiCompatible: createOpenAICompatible({
      name: "ling", ...settings, includeUsage: true, supportsStructuredOutputs: true,
    }),
    anthropic: createAnthropic(settings),
  };
  const mood = jsonSchema({
    type: "object", properties: { mood: { enum: ["good", "bad"] } }, required: ["mood"], additionalProperties: false,
  });
  for (const [name, provider] of Object.entries(providers)) {
    const base = { model: provider(model), prompt: said, maxOutputTokens: 60 };
    expect((await generateText(base)).text, `${name}: no text`);
    const stream = streamText(base);
    let text = "";
    for await (const part of stream.textStream) text += part;
    expect(text && (await stream.usage).outputTokens > 0, `${name}: no streamed text with usage`);
    const called = await generateText({
      ...base, tools: { weather: tool({ description: "It tells.", inputSchema: jsonSchema(parameters) }) },
      toolChoice: "required",
    });
    expect(called.toolCalls[0].input.city === "Paris", `${name}: no call`);
    const typed = await generateText({ ...base, output: Output.object({ schema: mood }) });
    expect(["good", "bad"].includes(typed.output.mood), `${name}: no object`);
  }
  return "openai-compatible and anthropic: generate, stream, tool, object";
}

async function openai() {
  const { default: OpenAI } = await load("openai");
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "x" });
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 20 });
  expect(answer.choices[0].message.content, "no text");
  let text = "";
  for await (const part of await client.chat.completions.create({ model, messages, max_tokens: 20, stream: true })) {
    text += part.choices[0]?.delta.content ?? "";
  }
  expect(text, "no streamed text");
  const response = await client.responses.create({ model, input: said, max_output_tokens: 20 });
  expect(response.output_text, "no response");
  return "chat, stream, responses";
}

async function anthropic() {
  const { default: Anthropic } = await load("@anthropic-ai/sdk");
  const client = new Anthropic({ baseURL: url, apiKey: "x" });
  const answer = await client.messages.create({ model, messages, max_tokens: 20 });
  expect(answer.content[0].text, "no text");
  const streamed = await client.messages.stream({ model, messages, max_tokens: 20 }).finalText();
  expect(streamed, "no streamed text");
  const tools = [{ name: "weather", input_schema: parameters }];
  const called = await client.messages.create({
    model, messages, max_tokens: 60, tools, tool_choice: { type: "any" },
  });
  expect(called.content[0].input.city === "Paris", "no call");
  return "messages, stream, call";
}

const libraries = { ai: aiSdk, openai, "@anthropic-ai/sdk": anthropic };
for (const [name, attempt] of Object.entries(libraries)) {
  try {
    require.resolve(name);
  } catch {
    console.log(`${name}: skipped: not installed; npm install ${name}`);
    continue;
  }
  try {
    console.log(`${name}: worked: ${await attempt()}`);
  } catch (error) {
    process.exitCode = 1;
    console.log(`${name}: FAILED: ${error}`);
  }
}
